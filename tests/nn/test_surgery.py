"""sparsify and densify on whole models, and the contest of a layer with itself dense."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import gossamer
from gossamer import SparseLinear, densify, sparsify
from gossamer.masks import allocate, magnitude_mask
from gossamer.nn import timing_check as contest
from gossamer.timing import Timing
from support.layers import Conv1D


class Net(nn.Module):
    """Nested layers, one of them without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16, bias=False)})
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](block["up"](x).relu())
        return self.head(self.norm(x))


def sparse_names(model: nn.Module) -> dict[str, str]:
    return {
        name: str(m.weight.pattern)
        for name, m in model.named_modules()
        if isinstance(m, SparseLinear)
    }


ALL = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head"]


def test_every_linear_is_swapped_in_place() -> None:
    model = Net()
    original = copy.deepcopy(model)
    head_bias = model.head.bias
    assert sparsify(model, "2:4") is model
    assert sparse_names(model) == dict.fromkeys(ALL, "2:4")
    assert model.head.bias is head_bias
    assert len(list(model.parameters())) == len(list(original.parameters()))
    with torch.no_grad():
        for name in ALL:
            linear = original.get_submodule(name)
            linear.weight.mul_(magnitude_mask(linear.weight, "2:4"))
    x = torch.randn(3, 16)
    torch.testing.assert_close(model(x), original(x))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"exclude": ["head"]}, ALL[:-1]),
        ({"exclude": "head"}, ALL[:-1]),
        ({"exclude": ["*.down", "head"]}, ["blocks.0.up", "blocks.1.up"]),
        ({"include": ["blocks.1"]}, ["blocks.1.up", "blocks.1.down"]),
        ({"include": "blocks.?.up"}, ["blocks.0.up", "blocks.1.up"]),
        ({"include": ["blocks"], "exclude": ["*.0"]}, ["blocks.1.up", "blocks.1.down"]),
        ({"include": ["head"], "overrides": {"blocks.0.up": "1:4"}}, ["blocks.0.up", "head"]),
        ({"overrides": {"blocks.0.up": "1:4", "blocks.0": None}}, [ALL[0], *ALL[2:]]),
    ],
)
def test_globs(options: dict[str, object], expected: list[str]) -> None:
    assert list(sparse_names(sparsify(Net(), "2:4", **options))) == expected


def test_overrides_have_their_own_pattern() -> None:
    model = sparsify(Net(), "90%", overrides={"head": "1:4:v4", "*.down": "block 4x4 50%"})
    assert sparse_names(model) == {
        "blocks.0.up": "90%",
        "blocks.0.down": "block 4x4 50%",
        "blocks.1.up": "90%",
        "blocks.1.down": "block 4x4 50%",
        "head": "1:4:v4",
    }


def test_erk_shares_the_sparsity() -> None:
    model = sparsify(Net(), "80%", distribution="erk", overrides={"head": "50%"})
    shapes = {name: (32, 16) if "up" in name else (16, 32) for name in ALL[:-1]}
    expected = allocate(shapes, 0.8, "erk")
    for name, sparsity in expected.items():
        assert model.get_submodule(name).weight.pattern.sparsity == sparsity
    assert model.head.weight.density == 0.5
    shapes["head"] = (8, 16)
    model = sparsify(Net(), "80%:v4", distribution="erk")
    kept = {n: model.get_submodule(n).weight.density for n in shapes}
    assert kept["head"] > kept["blocks.0.up"]
    entries = sum(a * b for a, b in shapes.values())
    total = sum(kept[n] * a * b for n, (a, b) in shapes.items())
    assert total == pytest.approx(0.2 * entries, rel=0.02)


def test_scores() -> None:
    model = Net()
    weight = model.head.weight.detach().clone()
    seen = []

    def smallest(name: str, weight: Tensor) -> Tensor:
        seen.append((name, tuple(weight.shape)))
        return -weight.abs()

    sparsify(model, "50%", include="head", score=smallest)
    assert seen == [("head", (8, 16))]
    assert torch.equal(model.head.weight.mask(), ~magnitude_mask(weight, "50%"))

    score = torch.randn(8, 16)
    model = sparsify(Net(), "2:4", include="head", score={"head": score})
    assert torch.equal(model.head.weight.mask(), gossamer.masks.mask_from_score(score, "2:4"))

    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = sparsify(nn.Linear(64, 64), "90%", score="random")
        masks.append(model.weight.mask())
    assert not torch.equal(masks[0], masks[2])
    torch.manual_seed(1)
    nn.Linear(64, 64)
    assert torch.equal(masks[0], masks[1])


def test_the_model_itself_may_be_a_linear() -> None:
    model = sparsify(nn.Linear(8, 4), "2:4")
    assert isinstance(model, SparseLinear)
    assert type(densify(model)) is nn.Linear


def test_a_module_used_twice_is_swapped_once() -> None:
    shared = nn.Linear(16, 16)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(16, 16))})
    sparsify(model, "2:4")
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], SparseLinear)
    densify(model)
    assert model["a"] is model["b"][0]

    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(16, 16))})
    sparsify(model, "2:4", exclude="b.0")
    assert model["a"] is shared, "an exclusion under either name holds"


def test_tied_linears_share_one_weight_there_and_back() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16, bias=False))
    model[2].weight = model[0].weight
    sparsify(model, "2:4")
    assert model[0].weight is model[2].weight
    assert len(list(model.parameters())) == 2
    x = torch.randn(4, 16)
    dense = model[0].weight.to_dense()
    torch.testing.assert_close(model(x), (x @ dense.T + model[0].bias).relu() @ dense.T)
    expected = model(x)
    densify(model)
    assert model[0].weight is model[2].weight
    torch.testing.assert_close(model(x), expected)


def test_tied_linears_of_two_patterns_are_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    with pytest.raises(gossamer.PatternError, match="share one weight"):
        sparsify(model, "2:4", overrides={"1": "1:4"})


def test_a_weight_tied_to_an_embedding_stays_dense_and_says_so() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(16, 8), "fc": nn.Linear(8, 8), "head": nn.Linear(8, 16)}
    )
    model["head"].weight = model["embed"].weight
    with pytest.warns(UserWarning, match=r"head \(its weight is also embed\.weight"):
        sparsify(model, "2:4")
    assert list(sparse_names(model)) == ["fc"]
    assert model["head"].weight is model["embed"].weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(nn.ModuleDict({**model, "other": nn.Linear(8, 8)}), "2:4", exclude="head")


def test_a_weight_tied_to_an_excluded_linear_stays_dense() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    with pytest.warns(UserWarning, match=r"0 \(its weight is also 1\.weight"):
        sparsify(model, "2:4", exclude="1")
    assert list(sparse_names(model)) == ["2"]


def test_conv1d_of_transformers() -> None:
    model = nn.Sequential(Conv1D(8, 16), nn.Linear(8, 8))
    dense = model[0].weight.detach().T
    sparsify(model, "2:4")
    assert sparse_names(model) == {"0": "2:4", "1": "2:4"}
    assert torch.equal(model[0].weight.to_dense(), dense * magnitude_mask(dense, "2:4"))
    x = torch.randn(2, 16)
    expected = model(x)
    torch.testing.assert_close(densify(model)(x), expected)
    assert type(model[0]) is nn.Linear


def test_torch_transformer_encoder_in_both_modes() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    sparsify(model, "2:4")
    assert [n for n in sparse_names(model) if "attn" not in n] == [
        f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)
    ]
    assert model.layers[0].activation_relu_or_gelu == 1, "torch sees itself what is sparse"
    twin = densify(copy.deepcopy(model))
    x, padding = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for mode in (True, False):
        model.train(mode)
        twin.train(mode)
        for mask in (None, padding):
            with torch.no_grad():
                got, expected = (m(x, src_key_padding_mask=mask) for m in (model, twin))
            torch.testing.assert_close(got, expected)


def test_a_linear_with_a_computed_weight_stays_dense_and_says_so() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    pruned = nn.Linear(16, 16)
    prune.l1_unstructured(pruned, "weight", 0.5)
    model = nn.Sequential(normed, pruned, nn.Linear(16, 16))
    with pytest.warns(UserWarning, match=r"left dense: 0 .*\n  1 "):
        sparsify(model, "2:4")
    assert list(sparse_names(model)) == ["2"]


def test_modes_hooks_and_frozen_parameters_are_carried_over() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].requires_grad_(False).eval()
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append("forward"))
    model[1].register_full_backward_hook(lambda *_: calls.append("backward"))
    for swap in (lambda m: sparsify(m, "2:4"), densify):
        swap(model)
        assert not model[0].training
        assert model[1].training
        assert not any(p.requires_grad for p in model[0].parameters())
        calls.clear()
        model(torch.randn(2, 16, requires_grad=True)).sum().backward()
        assert calls == ["forward", "backward"]


def misfits() -> dict[str, tuple[type[Exception], str, Callable[[nn.Module], object]]]:
    pattern = gossamer.PatternError
    bad = torch.full((8, 16), torch.nan)
    return {
        "shape": (pattern, r"layer 'head' got out_features=9", lambda m: sparsify(m, "2:4:v4")),
        "exclude is named": (pattern, r"exclude=\['head'\]", lambda m: sparsify(m, "2:4:v4")),
        "include": (pattern, "hed.*linear layers are blocks", lambda m: sparsify(m, "2:4", "hed")),
        "exclude": (pattern, "hed", lambda m: sparsify(m, "2:4", exclude=["hed"])),
        "overrides": (pattern, "hed", lambda m: sparsify(m, "2:4", overrides={"hed": None})),
        "nothing": (pattern, "no layer", lambda m: sparsify(m, "2:4", exclude="*")),
        "text": (pattern, "2:4:v4", lambda m: sparsify(m, "half")),
        "override text": (pattern, "2:4", lambda m: sparsify(m, "2:4", overrides={"head": "x"})),
        "erk": (pattern, "the same everywhere", lambda m: sparsify(m, "2:4", distribution="erk")),
        "distribution": (
            gossamer.ArgumentError,
            "uniform",
            lambda m: sparsify(m, "9%", distribution="even"),
        ),
        "score": (pattern, "'random'", lambda m: sparsify(m, "2:4", score="best")),
        "no score": (pattern, "layer 'blocks.0.up'", lambda m: sparsify(m, "2:4", score={})),
        "complex score": (
            gossamer.DTypeError,
            "layer 'head'.*complex",
            lambda m: sparsify(m, "2:4", "head", score={"head": torch.full((9, 16), 1j)}),
        ),
        "score shape": (
            gossamer.ShapeError,
            "layer 'head'",
            lambda m: sparsify(m, "2:4", "head", score={"head": bad}),
        ),
        "float16": (gossamer.DTypeError, "float16", lambda m: sparsify(m.half(), "2:4")),
        "meta": (gossamer.DeviceError, "meta", lambda m: sparsify(m.to("meta"), "2:4")),
        "batch": (
            gossamer.ArgumentError,
            "batch=0",
            lambda m: sparsify(m, "2:4", keep_dense_if_slower=True, batch=0),
        ),
    }


@pytest.mark.parametrize("case", misfits())
def test_a_failure_changes_nothing(case: str) -> None:
    error, text, call = misfits()[case]
    model = Net()
    model.head = nn.Linear(16, 9)
    with pytest.raises(error, match=text):
        call(model)
    assert not sparse_names(model)
    assert all(type(model.get_submodule(name)) is nn.Linear for name in ALL)


def race(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[list[str]]:
    """Replace the clock of the contest; its steps still run once."""
    rounds = []

    def interleaved(fns: dict[str, Callable[[], None]], *_: int) -> dict[str, Timing]:
        rounds.append(list(fns))
        for fn in fns.values():
            fn()
        return {name: Timing.from_samples([seconds[name]]) for name in fns}

    monkeypatch.setattr(contest, "interleaved", interleaved)
    return rounds


def test_dense_stays_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = race(monkeypatch, {"sparse": 2e-3, "dense": 1e-3})
    model = Net()
    state = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=r"head \(2:4 of 8x16 at batch 4: dense 1 ms, sparse 2 ms"):
        sparsify(model, "2:4", keep_dense_if_slower=True, batch=4)
    assert not sparse_names(model)
    assert len(rounds) == len(ALL)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_sparse_takes_over_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = race(monkeypatch, {"sparse": 1e-3, "dense": 2e-3})
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    before = torch.get_rng_state()
    sparsify(model, "2:4", keep_dense_if_slower=True, batch=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(sparse_names(model)) == 3
    assert len(rounds) == 2, "tied layers are one contest"
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_the_real_contest_runs() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = sparsify(Net(), "2:4", keep_dense_if_slower=True, batch=2)
    left = [name for name in ALL if name not in sparse_names(model)]
    assert all(any(f"{name} (" in str(w.message) for w in told) for name in left)
    assert bool(told) == bool(left)


@pytest.mark.parametrize("verb", ["spmm", "spmm_t", "sddmm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.slow
def test_the_contest_checks_results_first(
    verb: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(gossamer.backend.products, verb)

    def wrong(*args: object) -> Tensor:
        out = real(*args)
        out.view(-1)[out.abs().argmax()] *= -1
        return out

    layer = SparseLinear(64, 32, pattern="75%:v4", dtype=dtype)
    contest.dense_wins("fc", layer, 8)
    monkeypatch.setattr(gossamer.backend.products, verb, wrong)
    with pytest.raises(gossamer.GossamerError, match="layer 'fc' differs"):
        contest.dense_wins("fc", layer, 8)
