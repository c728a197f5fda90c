"""RigL: what grows is what the full dense gradient says, of which only a slab is in memory."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gossamer.recipes.rigl as rigl_module
from gossamer import backend
from gossamer.recipes.rigl import RigL


def prepared(pattern="75%", dtype=torch.float64, **options):
    torch.manual_seed(0)
    recipe = RigL(pattern, every=1, end_share=1.0, **options)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)).to(dtype)
    recipe.prepare(model)
    opt = torch.optim.SGD(recipe.parameters(model), lr=0.05)
    recipe.attach(model, opt, total_steps=1000)
    return recipe, model, opt


def dense_gradients(model, batches):
    """The gradients of torch's dense twin."""
    layers = [nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)]
    twin = nn.Sequential(*layers).to(model[0].bias.dtype)
    for at in (0, 2):
        twin[at].weight.data = model[at].weight.to_dense().detach()
        twin[at].bias.data = model[at].bias.detach()
    for x in batches:
        twin(x).square().sum().backward()
    return [twin[at].weight.grad for at in (0, 2)]


@pytest.mark.parametrize(
    "pattern", ["75%", "2:4", "1:8", "2:8:v4", "75%:v4", "block 4x4 50%", "2:4:v16", "50%:v16"]
)
def test_grown_are_those_of_the_largest_dense_gradient(pattern):
    recipe, model, opt = prepared(pattern, fraction=0.4)
    batches = [torch.randn(3, 5, 16).double(), torch.randn(7, 16).double()]
    for t in range(4):
        gradients = dense_gradients(model, batches)
        old = [model[at].weight.mask() for at in (0, 2)]
        opt.zero_grad()
        for x in batches:
            model(x).square().sum().backward()
        before = stepped(model, 0.05)
        opt.step()
        for at, weight, mask, gradient in zip((0, 2), before, old, gradients, strict=True):
            now = model[at].weight.mask()
            if t:
                oracle = moved(weight, mask, gradient, model[at].weight.pattern, recipe.share(t))
                assert torch.equal(now, oracle)
                assert not torch.equal(now, mask)
            else:
                assert torch.equal(now, mask)


def stepped(model, lr):
    """The dense weights after a step of SGD."""
    weights = [model[at].weight for at in (0, 2)]
    return [backend.scatter((w.values - lr * w.values.grad).detach(), w.structure) for w in weights]


def moved(weight, mask, gradient, pattern, share):
    """Drop and grow with dense sorts, tile by tile."""
    high = getattr(pattern, "rows", getattr(pattern, "vector", 1))
    wide = getattr(pattern, "cols", 1)
    rows, cols = weight.shape

    def tiles(x):
        return x.abs().view(rows // high, high, cols // wide, wide).sum((1, 3))

    kept, size, growth = mask[::high, ::wide], tiles(weight), tiles(gradient)
    count = int(share * int(kept.sum()))
    out = size.masked_fill(~kept, torch.inf).flatten().argsort()[:count]
    stay = kept.flatten().clone()
    stay[out] = False
    growth = growth.flatten().masked_fill(stay, -1.0)
    if hasattr(pattern, "m"):
        for group in range(len(stay) // pattern.m):
            here = slice(group * pattern.m, (group + 1) * pattern.m)
            room = pattern.n - int(stay[here].sum())
            order = growth[here].argsort(descending=True, stable=True)
            stay[order[:room] + here.start] = True
    else:
        stay[growth.argsort(descending=True, stable=True)[:count]] = True
    slots = stay.view(rows // high, cols // wide)
    return slots.repeat_interleave(high, 0).repeat_interleave(wide, 1)


def test_an_entry_that_comes_back_at_once_keeps_its_value():
    _, model, opt = prepared("50%", fraction=1.0)
    x = torch.randn(9, 16).double()
    for _ in range(2):
        opt.zero_grad()
        model(x).square().sum().backward()
        mask, old = model[0].weight.mask(), stepped(model, 0.05)[0]
        opt.step()
    back = mask & model[0].weight.mask()
    assert back.any()
    assert not back[mask].all()
    torch.testing.assert_close(model[0].weight.to_dense()[back], old[back], rtol=1e-12, atol=0)
    assert not model[0].weight.to_dense()[~mask].any()


class Largest(TorchDispatchMode):
    """Notes the most entries of a floating-point tensor that was made."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("pattern", ["97%", "1:32"])
def test_only_a_slab_of_the_dense_gradient_is_in_memory(pattern, monkeypatch):
    recipe = RigL(pattern, every=1, end_share=1.0)
    torch.manual_seed(0)
    model = recipe.prepare(nn.Sequential(nn.Linear(256, 512)))
    opt = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    recipe.attach(model, opt, total_steps=100)
    monkeypatch.setattr(rigl_module, "SLAB", 4096)
    sizes = []
    monkeypatch.setattr(recipe, "average", lambda slab: sizes.append(slab.numel()) or slab)
    # The mask's own move is the weight's matter.
    monkeypatch.setattr(type(model[0].weight), "set_mask", lambda self, mask, optimizer: None)
    for t in range(2):
        opt.zero_grad()
        model(torch.randn(8, 256)).square().sum().backward()
        assert not sizes
        if t:
            with torch.no_grad(), Largest() as largest:
                recipe.before_step(1)
                recipe.update(1, recipe.share(1))
            nnz = model[0].weight.nnz
            assert largest.entries <= 2 * max(4096, nnz) + 1024, largest.entries
            assert sizes == [1] + [4096] * 32
        opt.zero_grad()
        recipe.step = 1


def test_nothing_is_kept_between_updates_or_under_no_grad():
    recipe, model, opt = prepared()
    recipe.every = 5
    x = torch.randn(4, 16).double()
    for t in range(6):
        opt.zero_grad()
        with torch.no_grad():
            model(x)
        model(x).square().sum().backward()
        assert all(len(c.coming) == (t == 5) for c in recipe.captures.values())
        opt.step()
        assert not any(c.pairs or c.coming for c in recipe.captures.values())


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_were_thrown_away_do_not_count(to_none):
    recipe, model, opt = prepared()
    x = torch.randn(4, 16).double()
    model(x).square().sum().backward()
    opt.step()
    opt.zero_grad()
    (1e6 * model(torch.randn(4, 16).double())).square().sum().backward()
    opt.zero_grad(set_to_none=to_none)  # as a scaler does that has met an overflow
    gradients = dense_gradients(model, [x])
    weight = model[0].weight
    model(x).square().sum().backward()
    old = stepped(model, 0.05)[0]
    oracle = moved(old, weight.mask(), gradients[0], weight.pattern, recipe.share(1))
    opt.step()
    assert torch.equal(weight.mask(), oracle)


def test_a_layer_that_took_no_part_is_left_alone():
    _, model, opt = prepared()
    idle = list(model[0].parameters())
    for t in range(3):
        masks = [model[at].weight.mask() for at in (0, 2)]
        opt.zero_grad()
        model[2](torch.randn(4, 32).double()).square().sum().backward()
        opt.step()
        assert torch.equal(masks[0], model[0].weight.mask())
        assert torch.equal(masks[1], model[2].weight.mask()) == (t == 0)
    assert all(p.grad is None for p in idle)


def test_autocast_and_bfloat16_train():
    for dtype, cast in ((torch.float32, True), (torch.bfloat16, False)):
        recipe, model, opt = prepared("75%", dtype)
        for _ in range(3):
            mask = model[0].weight.mask()
            opt.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                loss = model(torch.randn(4, 16, dtype=dtype)).float().square().sum()
            loss.backward()
            opt.step()
        assert not torch.equal(mask, model[0].weight.mask())
        assert recipe.step == 3


def test_gradients_are_those_of_all_processes():
    recipe, model, opt = prepared()
    other = torch.randn(4, 16).double()
    x = torch.randn(4, 16).double()
    model(x).square().sum().backward()
    opt.step()
    opt.zero_grad()
    both = [g / 2 for g in dense_gradients(model, [x, other])]
    theirs = iter(dense_gradients(model, [other]))
    weights = [model[at].weight for at in (0, 2)]
    recipe.average = lambda t: t if t.dim() == 0 else t.add_(next(theirs)).div_(2)
    model(x).square().sum().backward()
    oracle = [
        moved(old, w.mask(), g, w.pattern, recipe.share(1))
        for w, old, g in zip(weights, stepped(model, 0.05), both, strict=True)
    ]
    opt.step()
    for weight, mask in zip(weights, oracle, strict=True):
        assert torch.equal(weight.mask(), mask)
