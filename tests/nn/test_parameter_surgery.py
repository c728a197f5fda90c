"""Sparse weights in the places of parameters: recipes, names, examples, ties and bad input."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer import densify, recipes, sparsify, summary
from gossamer.nn import MaskedLayer, SparseLinear, SparseParameter
from support.parameters import BARE, CASES, F64, Bare, built

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*outputs that read nothing", "ignore:.*nested tensors"
)


RECIPES: dict[str, Callable[[], recipes.Recipe]] = {
    "static": lambda: recipes.Static("50%"),
    "set": lambda: recipes.SET("50%", every=1),
    "rigl": lambda: recipes.RigL("50%", every=1),
    "gmp-sparse": lambda: recipes.GMP("50%", dense_weight=False),
    "ste": lambda: recipes.STE("2:4"),
    "slope": lambda: recipes.SLoPe("2:4"),
}


@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", ["cross attention", "LSTM two layers packed", "bilinear"])
def test_recipes_train_them_and_move_their_masks(name: str, recipe_name: str) -> None:
    make, run, shape, count = CASES[name]
    torch.manual_seed(0)
    model, recipe = nn.Sequential(make()), RECIPES[recipe_name]()
    recipe.prepare(model)
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=0.02)
    recipe.attach(model, optimizer, total_steps=12)
    layers = [m for m in model.modules() if isinstance(m, MaskedLayer)]
    assert len(recipe.layers) == len(layers) >= count
    masks = [layer.mask() for layer in layers]
    x = torch.randn(shape)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (run(model[0], x) - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = [not torch.equal(m, layer.mask()) for m, layer in zip(masks, layers, strict=True)]
    assert all(moved) if recipe_name in ("set", "rigl", "gmp-sparse") else True
    assert not any(moved) or recipe_name not in ("static", "slope")
    recipe.finish(model)
    expected = run(model[0], x)
    assert all(isinstance(m, SparseLinear) for m in model.modules() if isinstance(m, MaskedLayer))
    densify(model)
    torch.testing.assert_close(run(model[0], x), expected)


def test_nothing_of_them_stays_dense_and_the_summary_counts_them() -> None:
    model, _, _ = built("encoder", "75%")
    found = summary(model)
    assert found.dense_kinds == ()
    parts = [layer for layer in found.layers if "in_proj_weight" in layer.name]
    assert [part.density for part in parts] == [0.25] * 3
    groups = gossamer.parameter_groups(model, weight_decay=0.1)
    decayed = sum(p.numel() for p in groups[0]["params"])
    assert decayed == sum(m.nnz for m in model.modules() if isinstance(m, MaskedLayer))


def test_globs_overrides_and_scores_name_them() -> None:
    def model() -> nn.Module:
        return nn.ModuleDict({"enc": nn.TransformerEncoderLayer(16, 2, 32), "rnn": nn.GRU(16, 8)})

    def sparse(**options: Any) -> set[str]:
        found = sparsify(model(), "2:4", **options)
        return {n for n, m in found.named_modules() if isinstance(m, SparseParameter)}

    attention = {"enc.self_attn.in_proj_weight", "enc.self_attn.out_proj.weight"}
    both = {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    assert sparse() == attention | both
    assert sparse(exclude="rnn") == attention
    assert sparse(exclude=["*.weight_hh_l?", "enc.self_attn.out_proj"]) == {
        "enc.self_attn.in_proj_weight", "rnn.weight_ih_l0",
    }  # fmt: skip
    assert sparse(include="rnn.*") == both
    found = sparsify(
        model(), "2:4", overrides={"*.in_proj_weight.1": "1:4", "rnn.weight_hh*": None}
    )
    whole = found["enc"].self_attn.in_proj_weight
    assert [str(part.weight.pattern) for part in whole.children()] == ["2:4", "1:4", "2:4"]
    assert isinstance(found["rnn"].weight_hh_l0, nn.Parameter)
    seen = []
    sparsify(model(), "2:4", score=lambda name, w: seen.append((name, tuple(w.shape))) or w.abs())
    assert ("enc.self_attn.in_proj_weight.2", (16, 16)) in seen
    assert ("rnn.weight_ih_l0", (24, 16)) in seen


def test_an_example_tells_how_parameters_are_stored() -> None:
    for example in (None, torch.randn(4, 8), (torch.randn(4, 8),), {"x": torch.randn(4, 8)}):
        model = Bare()
        before = torch.get_rng_state()
        sparsify(model, "1:4", parameters=BARE, example=example)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training
        assert model.up.turned == model.mix[1].turned == (example is not None)
        assert not any(w.turned for w in (model.down, model.mix[0], model.stack))
        dense = densify(copy.deepcopy(model))
        x = torch.randn(4, 8)
        torch.testing.assert_close(dense(x), model(x))
        groups = (dense.up != 0).view(2, 4, 16).sum(1) if example is not None else None
        assert groups is None or bool((groups == 1).all())


def test_a_shared_parameter_stays_shared() -> None:
    model = nn.Sequential(nn.LSTM(8, 8), nn.LSTM(8, 8))
    model[1].weight_ih_l0 = model[0].weight_ih_l0
    sparsify(model, "2:4")
    assert model[0].weight_ih_l0 is model[1].weight_ih_l0
    assert model[1]._flat_weights[0] is model[1].weight_ih_l0
    densify(model)
    assert model[0].weight_ih_l0 is model[1].weight_ih_l0
    assert model[1]._flat_weights[0] is model[1].weight_ih_l0

    model = nn.ModuleDict({"rnn": nn.GRU(8, 8), "fc": nn.Linear(8, 24), "other": nn.Linear(8, 8)})
    model["fc"].weight = model["rnn"].weight_ih_l0
    with pytest.warns(UserWarning, match=r"fc \(its weight is also rnn\.weight_ih_l0"):
        sparsify(model, "2:4")
    assert model["fc"].weight is model["rnn"].weight_ih_l0


class Tied(nn.Module):
    """An autoencoder that decodes by the transpose of its encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encoder(x).relu(), self.encoder.weight.t())


class Summed(Tied):
    """Uses the weight in a way that has no sparse form."""

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) * self.encoder.weight.sum()


def test_models_that_multiply_by_the_weight_of_a_layer() -> None:
    model = sparsify(Tied().to(F64), "2:4", example=torch.randn(3, 16, dtype=F64))
    dense, x = densify(copy.deepcopy(model)), torch.randn(3, 16, dtype=F64)
    for m in (model, dense):
        m(x).square().sum().backward()
    torch.testing.assert_close(model(x), dense(x))
    kept = gossamer.backend.gather(dense.encoder.weight.grad, model.encoder.weight.structure)
    torch.testing.assert_close(model.encoder.weight.values.grad, kept)


def test_rows_in_another_order_are_refused_outside_their_layer() -> None:
    model = sparsify(Tied(), "2:4:v4", group_rows=True)
    x = torch.randn(3, 16)
    model.encoder(x)
    with pytest.raises(gossamer.DTypeError, match=r"encoder\.weight.*exclude"):
        model(x)
    with pytest.raises(gossamer.PatternError, match="rows are grouped"):
        sparsify(Tied(), "2:4:v4", group_rows=True, example=x)


def test_what_fails_on_the_example_is_taken_back() -> None:
    model = nn.ModuleDict({"a": Summed(), "b": nn.LSTM(16, 16), "c": nn.MultiheadAttention(16, 2)})
    model.forward = lambda x: model["a"](x)
    before = dict(model.named_parameters())
    kinds = [type(m) for m in model.modules()]
    tags = [dict(vars(m)) for m in model.modules()]
    with pytest.raises(gossamer.PatternError, match=r"sum of a tensor .* of .*encoder\.weight"):
        sparsify(model, "2:4", example=torch.randn(2, 16))
    assert [type(m) for m in model.modules()] == kinds
    assert [dict(vars(m)) for m in model.modules()] == tags
    assert all(before[name] is p for name, p in model.named_parameters())
    model(torch.randn(2, 16))
    model["b"](torch.randn(2, 16))
    sparsify(model, "2:4")
    with pytest.raises(gossamer.DTypeError, match=r"a\.encoder\.weight.*exclude"):
        model(torch.randn(2, 16))


def odd() -> nn.Module:
    model = nn.ModuleDict({"rnn": nn.GRU(6, 8), "fc": nn.Linear(8, 8), "bare": Bare()})
    model["table"] = nn.Embedding(8, 8)
    return model


Change = Callable[[nn.Module], Any]
REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any], Change | None]] = {
    "shape": (
        gossamer.PatternError, r"layer 'rnn\.weight_ih_l0' got in_features=6.*exclude", {}, None,
    ),
    "unknown": (
        gossamer.PatternError, "parameters='w' matches no .*bare.up", {"parameters": "w"}, None,
    ),
    "no text": (gossamer.DTypeError, "parameters=3", {"parameters": 3}, None),
    **{
        name: (gossamer.PatternError, f"parameters='{name}'", {"parameters": name}, None)
        for name in ("table.weight", "bare.bias", "fc.weight")
    },
    "hook": (
        gossamer.PatternError, "parameter 'bare.up' has a gradient hook",
        {"parameters": "bare.*", "exclude": "rnn"},
        lambda m: m["bare"].up.register_hook(lambda g: g),
    ),
    "held": (
        gossamer.PatternError, "parameter 'bare.up' is also held by bare.kept",
        {"parameters": "bare.*", "exclude": "rnn"},
        lambda m: setattr(m["bare"], "kept", [m["bare"].up]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_clear_error_and_changes_nothing(case: str) -> None:
    error, text, options, change = REFUSED[case]
    model = odd()
    if change is not None:
        change(model)
    names = [*dict(model.named_parameters())]
    with pytest.raises(error, match=f"(?s){text}"):
        sparsify(model, "2:4", **options)
    assert [*dict(model.named_parameters())] == names
    assert not SparseParameter.find_in(model)


def test_experts_of_another_shape_are_refused_on_load(tmp_path: Any) -> None:
    model, dense, _ = built("bare")
    gossamer.save(model, tmp_path)
    dense[0]["part"].stack = nn.Parameter(torch.zeros(4, 8, 8, dtype=F64))
    before = copy.deepcopy(dense.state_dict())
    with pytest.raises(gossamer.CheckpointError, match=r"stack.*shape \[3, 8, 8\].*\[4, 8, 8\]"):
        gossamer.load(tmp_path, dense)
    assert all(torch.equal(before[name], t) for name, t in dense.state_dict().items())


def test_layers_that_do_not_make_up_a_parameter() -> None:
    layers = [SparseLinear(8, 4, bias=False, pattern="2:4") for _ in range(2)]
    for form, shape in (
        ("matrix", (8, 8)),
        ("rows", (8, 9)),
        ("stack", (2, 8, 4)),
        ("pile", (8, 8)),
    ):
        with pytest.raises(gossamer.ShapeError, match="make it up"):
            SparseParameter(layers, form, shape)
    with pytest.raises(gossamer.ShapeError, match="bias"):
        SparseParameter([SparseLinear(8, 4, pattern="2:4")], "matrix", (4, 8))


def test_tags_of_a_parameter_are_carried_there_and_back() -> None:
    model = nn.GRU(8, 8)
    model.weight_ih_l0.no_weight_decay = True
    sparsify(model, "2:4")
    assert [n for n, p in model.named_parameters() if hasattr(p, "no_weight_decay")] == [
        "weight_ih_l0.0.weight.values"
    ]
    densify(model)
    assert model.weight_ih_l0.no_weight_decay


def test_a_subclass_of_linear_by_name() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias) + 1

    model = nn.Sequential(Own(8, 8), nn.Linear(8, 8))
    x = torch.randn(2, 8)
    sparsify(model, "2:4", parameters="0.weight")
    assert type(model[0]) is Own
    expected = model(x)
    torch.testing.assert_close(densify(model)(x), expected)
