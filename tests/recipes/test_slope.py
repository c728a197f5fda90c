"""SLoPe against dense torch: the same numbers from compressed state, resumed at any step."""

import copy
import io
import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import gossamer
from gossamer import SparseLinear, backend
from gossamer.masks import double_prune_mask, magnitude_mask
from gossamer.nn import AdaptedLinear, LowRankAdapter, summary
from gossamer.recipes.slope import SLoPe

PATTERNS = ["1:4", "2:8", "2:4", "1:4:v4"]


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(12, 32, generator=torch.Generator().manual_seed(step), dtype=dtype)


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = batch(step, dtype)
    return (model(x) - x[:, :16].tanh()).square().mean()


class Doubly(Function):
    """Y = X W^T whose dX comes from the pruned W: dense, as a reader of the paper writes it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, pruned: Tensor) -> Tensor:
        ctx.save_for_backward(x, pruned)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, pruned = ctx.saved_tensors
        return g @ pruned, g.t() @ x, None


class DenseTwin(nn.Module):
    """A dense weight under a fixed mask, with the same backward pass."""

    def __init__(self, linear: nn.Linear, pattern: gossamer.NM, double: bool) -> None:
        super().__init__()
        self.mask = magnitude_mask(linear.weight.detach(), pattern)
        self.weight = nn.Parameter(linear.weight.detach() * self.mask)
        self.bias = nn.Parameter(linear.bias.detach().clone())
        self.weight.register_hook(lambda g: g * self.mask)
        self.pattern, self.double = pattern, double
        self.choose()

    def choose(self) -> None:
        n, m = self.pattern.n, self.pattern.m
        self.kept = double_prune_mask(self.weight, n, m) if self.double else self.mask

    def forward(self, x: Tensor) -> Tensor:
        return Doubly.apply(x, self.weight, self.weight.detach() * self.kept) + self.bias


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.slow
def test_equals_dense_adamw(pattern: str, dtype: torch.dtype, close: float, every: int) -> None:
    """20 steps on compressed state are 20 of torch's AdamW on masked weights and gradients."""
    recipe = SLoPe(pattern, every=every)
    model = recipe.prepare(network(dtype=dtype))
    dense = network(dtype=dtype)
    for i in (0, 2):
        dense[i] = DenseTwin(dense[i], recipe.pattern, recipe.pattern.vector == 1)
    # eps: where the second moment is tiny, 1 / sqrt(v) would blow up the order of the sums.
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}
    ours = torch.optim.AdamW(recipe.parameters(model), **settings)
    theirs = torch.optim.AdamW(dense.parameters(), **settings)
    recipe.attach(model, ours, total_steps=20)
    start = model[0].weight.to_dense().detach()
    for step in range(20):
        for net, optimizer in ((model, ours), (dense, theirs)):
            optimizer.zero_grad()
            loss_of(net, step, dtype).backward()
            optimizer.step()
        if (step + 1) % every == 0:
            for i in (0, 2):
                dense[i].choose()
        for i in (0, 2):
            got = model[i].weight.to_dense().detach()
            torch.testing.assert_close(got, dense[i].weight.detach(), rtol=close, atol=close)
            assert not got[~dense[i].mask].any(), "outside the mask everything stays exactly 0"
            torch.testing.assert_close(model[i].bias, dense[i].bias, rtol=close, atol=close)
    moved = model[0].weight.to_dense().detach() != start
    assert torch.equal(moved, dense[0].mask), "what W^{R,C} leaves out is trained as well"
    if recipe.pattern.vector == 1:
        assert (dense[0].mask & ~dense[0].kept).any()


@pytest.mark.parametrize("pattern", ["1:4", "2:8"])
def test_optimizer_bits(pattern: str) -> None:
    """From the same gradients AdamW makes the same bits, compressed or dense."""
    recipe = SLoPe(pattern)
    model = recipe.prepare(network())
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=20)
    weight = model[0].weight
    dense = nn.Parameter(weight.to_dense().detach())
    twin = torch.optim.AdamW([dense], lr=1e-2)
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        dense.grad = backend.scatter(weight.values.grad, weight.structure)
        optimizer.step()
        twin.step()
        assert torch.equal(weight.to_dense().detach(), dense.detach())


def test_refresh_period() -> None:
    """The choice is renewed every every steps, and only then."""
    recipe = SLoPe("2:8", every=3)
    model = recipe.prepare(network())
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=0.1)
    recipe.attach(model, optimizer, total_steps=20)
    weight = model[0].weight
    chosen = [weight.t_perm]
    for step in range(7):
        loss_of(model, step).backward()
        optimizer.step()
        chosen.append(weight.t_perm)
    changed = [a is not b for a, b in itertools.pairwise(chosen)]
    assert changed == [False, False, True, False, False, True, False]
    assert not torch.equal(chosen[0], chosen[3])


def start(
    recipe: SLoPe, seed: int = 0, total: int = 12, schedule: bool = True
) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    model = recipe.prepare(network(seed))
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=3e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * total)
    recipe.attach(model, optimizer, total)
    return model, optimizer, scheduler


def train(model, optimizer, scheduler, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()


def options(pattern: str) -> SLoPe:
    return SLoPe(pattern, adapter_rank=3, adapter_share=0.25, every=4, seed=1)


@pytest.mark.parametrize("pattern", ["1:4", "2:8:v4"])
@pytest.mark.parametrize("at", [0, 3, 8, 9, 11])
def test_resume(pattern: str, at: int) -> None:
    """Stopped at any step, before, at or after the insertion (step 9): no bit differs."""
    recipe = options(pattern)
    whole = start(recipe)
    assert recipe.insertion == 9
    train(*whole, range(at))
    file = io.BytesIO()
    torch.save([recipe.state_dict(), *(part.state_dict() for part in whole)], file)
    train(*whole, range(at, 12))

    other = options(pattern)
    parts = start(other, seed=7)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved[0])
    for part, state in zip(parts, saved[1:], strict=True):
        part.load_state_dict(state)
    assert other.step == at
    train(*parts, range(at, 12))
    expected = whole[0].state_dict()
    got = parts[0].state_dict()
    assert got.keys() == expected.keys()
    assert "0.adapter.left" in got
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_insertion() -> None:
    recipe = options("1:4")
    model, optimizer, scheduler = start(recipe)
    train(model, optimizer, scheduler, range(8))
    assert model[0].adapter is None
    train(model, optimizer, scheduler, range(8, 9))
    x = batch(99)
    adapter = model[0].adapter
    assert not adapter.right.any()
    plain = SparseLinear.of_parts(model[0].weight, model[0].bias)
    assert torch.equal(model[0](x), plain(x)), "an insertion changes no output"
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]
    assert optimizer.param_groups[1]["weight_decay"] == 0.01
    left = adapter.left.detach().clone()
    assert not torch.equal(left, torch.cat([model[2].adapter.left.detach()[:32]]))
    train(model, optimizer, scheduler, range(9, 12))
    assert adapter.right.all()
    assert not torch.equal(adapter.left, left)
    dense = model[0].weight.to_dense() + (adapter.left @ adapter.right).t() / 3
    torch.testing.assert_close(model[0](x), nn.functional.linear(x, dense, model[0].bias))
    torch.testing.assert_close(model[0](x[0]), model[0](x)[0])
    torch.testing.assert_close(model[0](x.view(3, 4, 32)), model[0](x).view(3, 4, 64))
    assert float(left.std()) == pytest.approx(1.0, abs=0.2)


def test_an_optimizer_without_the_reserved_group() -> None:
    recipe = options("1:4")
    model = recipe.prepare(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, weight_decay=0.3)
    recipe.attach(model, optimizer, 12)
    optimizer.param_groups[0]["lr"] = 1e-3
    for step in range(12):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    group = optimizer.param_groups[1]
    assert len(group["params"]) == 4
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.01)
    assert model[0].adapter.right.any()


@pytest.mark.parametrize("pattern", ["2:8", "1:4:v4"])
def test_finish(pattern: str) -> None:
    recipe = options(pattern)
    model, *rest = start(recipe)
    train(model, *rest, range(12))
    x = batch(5)
    expected = model(x)
    merged = recipe.finish(copy.deepcopy(model), adapters="merged")
    assert [type(layer) for layer in (merged[0], merged[2])] == [nn.Linear] * 2
    torch.testing.assert_close(merged(x), expected)
    torch.testing.assert_close(gossamer.densify(copy.deepcopy(model))(x), expected)
    torch.testing.assert_close(model[0].merge()(x), model[0](x))
    state = copy.deepcopy(model.state_dict())
    folded = recipe.finish(model)
    torch.testing.assert_close(folded(x), expected)
    assert folded[0].weight.backward == "exact"
    assert not [name for name in folded.state_dict() if ".t_" in name]
    # A file tells whether 1 / r is folded into R: either loads into either.
    twin = copy.deepcopy(folded)
    again = {name: t for name, t in state.items() if ".t_" not in name}
    twin.load_state_dict(again)
    torch.testing.assert_close(twin(x), expected)
    twin.load_state_dict(folded.state_dict())
    assert torch.equal(twin(x), folded(x))


def test_finish_without_adapters() -> None:
    recipe = SLoPe("1:4")
    model, *rest = start(recipe)
    train(model, *rest, range(2))
    expected = model(batch(1))
    finished = recipe.finish(model)
    assert type(finished[0]) is SparseLinear
    assert finished[0].weight.backward == "exact"
    assert torch.equal(finished(batch(1)), expected)
    gossamer.sparsify(network(), "1:4").load_state_dict(finished.state_dict())


def test_one_layer_is_a_model() -> None:
    recipe = SLoPe("1:4", adapter_rank=2, adapter_share=1.0)
    layer = recipe.prepare(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(recipe.parameters(layer), lr=0.1)
    recipe.attach(layer, optimizer, 2)
    assert isinstance(layer, AdaptedLinear)
    assert layer.adapter is not None, "all steps have adapters"


def test_bad_input() -> None:
    for wrong in (
        {"adapter_rank": -1},
        {"every": 0},
        {"adapter_share": 0.0},
        {"adapter_share": 1.5},
        {"adapter_weight_decay": -1.0},
        {"backward": "fast"},
    ):
        with pytest.raises(gossamer.GossamerError, match=next(iter(wrong))):
            SLoPe("2:4", **wrong)
    model = network()
    with pytest.raises(gossamer.GossamerError, match=r"'2'.*adapter_rank=20"):
        SLoPe("1:4", adapter_rank=20).prepare(model)
    assert type(model[0]) is nn.Linear
    with pytest.raises(gossamer.PatternError, match="N:M"):
        SLoPe("75%", backward="double_pruned").prepare(model)
    assert SLoPe("75%").prepare(network())[0].weight.backward == "exact"
    recipe = options("1:4")
    parts = start(recipe)
    early = recipe.state_dict()
    train(*parts, range(12))
    with pytest.raises(gossamer.GossamerError, match="before the adapters"):
        recipe.load_state_dict(early)
    assert recipe.step == 12
    other = SLoPe("1:4", adapter_rank=3, adapter_share=0.25, every=5, seed=1)
    start(other)
    with pytest.raises(gossamer.GossamerError, match="every=4"):
        other.load_state_dict(early)
    with pytest.raises(gossamer.GossamerError, match="folded"):
        recipe.finish(parts[0], adapters="both")
    for rank in (0, 9, 2.5):
        with pytest.raises(gossamer.GossamerError, match="rank"):
            LowRankAdapter(8, 16, rank)
    with pytest.raises(gossamer.PatternError, match="already"):
        parts[0][0].insert(2)


@pytest.mark.parametrize(("pattern", "bound"), [("2:4", 0.68), ("2:4:v4", 0.55)])
def test_bytes(pattern: str, bound: float) -> None:
    recipe = SLoPe(pattern)
    model = recipe.prepare(nn.Sequential(nn.Linear(512, 512, False), nn.Linear(512, 512, False)))
    optimizer = torch.optim.AdamW(recipe.parameters(model))
    recipe.attach(model, optimizer, 10)
    model(torch.randn(4, 512)).sum().backward()
    optimizer.step()
    assert summary(model, optimizer).ratio <= bound


RESIDENT = """
import ctypes, sys, torch
from torch import nn
from gossamer.nn import summary
from gossamer.recipes.slope import SLoPe

torch.set_num_threads(1)

def resident(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

def build(width, depth):
    recipe = SLoPe(sys.argv[1])
    layers = [recipe.prepare(nn.Linear(width, width, bias=False)) for _ in range(depth)]
    model = nn.Sequential(*layers)
    # Fused: torch's other loops make a copy of each parameter for a moment.
    optimizer = torch.optim.AdamW(recipe.parameters(model), fused=True)
    recipe.attach(model, optimizer, 9)
    return model, optimizer

def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, model[0].in_features)).sum().backward()
    optimizer.step()

step(*build(64, 1))
trim = ctypes.CDLL("libc.so.6").malloc_trim
trim(0)
before = resident("VmRSS")
model, optimizer = build(1024, 8)
trim(0)
open("/proc/self/clear_refs", "w").write("5")
for _ in range(2):
    step(model, optimizer)
print(resident("VmHWM") - before, summary(model, optimizer).total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("pattern", ["2:4", "2:4:v4"])
@pytest.mark.slow
@pytest.mark.process
def test_resident_set(pattern: str) -> None:
    """The peak of the resident set grows by what summary() counts, within 5 percent."""
    command = [sys.executable, "-c", RESIDENT, pattern]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown, counted = map(int, done.stdout.split())
    assert grown == pytest.approx(counted, rel=0.05)
