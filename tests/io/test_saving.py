"""save and load: every kind of layer comes back, in a dense model or a model that is built."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer
from gossamer import CheckpointError, SparseLinear, StructureError, recipes
from gossamer.nn.layers.rebuilding import build, describe
from support.saved_models import (
    MODELS,
    bits,
    built,
    damage_description,
    dense,
    dense_of,
    dense_rectifier,
    prepared,
    rectifier,
    sparse,
    unchanged,
    x,
)

# The layers are small.
pytestmark = pytest.mark.filterwarnings("ignore:.*outputs that read nothing")


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_layer_comes_back_in_a_dense_model(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    gossamer.save(model, tmp_path)
    target = dense_of(model)
    before = torch.get_rng_state()
    other = gossamer.load(tmp_path, target)
    assert torch.equal(torch.get_rng_state(), before)
    assert other is target
    assert str(other) == str(model)
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) and mine[n].dtype == theirs[n].dtype for n in mine)
    results = []
    for one in (model, other):
        inputs = x().requires_grad_()
        one.zero_grad()
        one(inputs).square().sum().backward()
        results.append((inputs.grad, [p.grad for p in one.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def unannotated(width: int):  # no annotation
    return sparse(width=width)


def test_a_model_is_built_again_by_its_factory(tmp_path: Path) -> None:
    model = sparse(pattern="50%", width=32).double().eval()
    kwargs = {"width": 32}  # of another pattern, which does not matter
    gossamer.save(model, tmp_path, built, kwargs)
    other = gossamer.load(tmp_path)
    assert str(other) == str(model)
    assert not other.training
    assert torch.equal(other(x().double()), model(x().double()))
    for factory in (
        unannotated,
        "os:system",
        "nowhere:at_all",
        "os",
        lambda: model,
        "torch.nn:init",
    ):
        with pytest.raises(gossamer.ArgumentError, match="factory"):
            gossamer.save(model, tmp_path, factory)
    assert torch.equal(gossamer.load(tmp_path)(x().double()), model(x().double()))
    with pytest.raises(gossamer.DTypeError, match="cannot be stored"):
        gossamer.save(model, tmp_path, built, {"width": torch.ones(1)})


def test_a_file_cannot_call_what_makes_no_module(tmp_path: Path) -> None:
    gossamer.save(sparse(), tmp_path, built, {"width": 16})
    damage_description(
        tmp_path, lambda d: d["model"].update(factory="os:system", kwargs={"command": "exit"})
    )
    with pytest.raises(CheckpointError, match="neither a class"):
        gossamer.load(tmp_path)


def test_a_layer_is_built_by_itself_and_other_models_need_one(tmp_path: Path) -> None:
    layer = SparseLinear(16, 8, pattern="50%")
    gossamer.save(layer, tmp_path)
    assert torch.equal(gossamer.load(tmp_path)(x()), layer(x()))
    assert torch.equal(
        gossamer.load(tmp_path / "model.safetensors", nn.Linear(16, 8))(x()), layer(x())
    )
    gossamer.save(sparse(), tmp_path)
    with pytest.raises(CheckpointError, match=r"load\(source, model\)"):
        gossamer.load(tmp_path)
    with pytest.raises(gossamer.ArgumentError, match=r"load\(source, model\)"):
        gossamer.load(sparse(), tmp_path)


def test_a_sparse_model_keeps_its_parameters(tmp_path: Path) -> None:
    model, other = sparse(1), sparse(2)
    gossamer.save(model, tmp_path)
    parameters = list(other.parameters())
    assert gossamer.load(tmp_path, other) is other
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))
    assert torch.equal(other(x()), model(x()))
    # The layers that differ are others, and the rest stays.
    gossamer.load(model.state_dict(), third := sparse(3, "50%"))
    assert str(third) == str(model)
    assert torch.equal(third(x()), model(x()))
    half = gossamer.load(tmp_path, dense().bfloat16())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_sparse_activations_come_back(tmp_path: Path) -> None:
    model = rectifier()
    gossamer.save(model, tmp_path)
    other = rectifier()
    other[0].gate_form = "auto"
    gossamer.load(tmp_path, other)
    assert torch.equal(other(x()), model(x()))
    assert other[0].gate_form == "float32"
    assert str(gossamer.densify(other)) == str(gossamer.densify(model))
    linears = dense_rectifier()
    before = bits(linears)
    gossamer.save(nn.Sequential(model[0], nn.Linear(16, 8)), tmp_path / "other")
    with pytest.raises(CheckpointError, match="size mismatch"):
        gossamer.load(tmp_path / "other", linears)
    assert unchanged(before, linears)
    torch.testing.assert_close(gossamer.load(tmp_path, linears)(x()), model(x()))
    assert str(gossamer.densify(linears)) == str(dense_rectifier())
    with pytest.raises(CheckpointError, match="sparse activations cannot be built"):
        gossamer.load(tmp_path, nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))


def test_a_check_leaves_the_guards_of_the_model() -> None:
    model, other = sparse(1), sparse(2)
    before = model(x())
    gossamer.check_state(model, other.state_dict())
    assert torch.equal(model(x()), before)
    model[0].weight.indices.fill_(255)
    with pytest.raises(StructureError, match="written over"):
        model(x())


@pytest.mark.parametrize("name", ["adapted", "masked", "bimask", "doped"])
def test_a_layer_is_built_of_its_description_and_its_state(name: str) -> None:
    for layer in MODELS[name]():
        if (described := describe(layer)) is not None:
            state = layer.state_dict()
            other = build(json.loads(json.dumps(described)), state).state_dict()
            assert other.keys() == state.keys()
            assert all(torch.equal(other[key], state[key]) for key in state)


def test_a_wrapped_model_has_the_names_of_its_inside(tmp_path: Path) -> None:
    model = sparse()
    gossamer.save(torch.compile(model, backend="eager"), tmp_path)
    other = sparse(5)
    compiled = torch.compile(other, backend="eager")
    assert gossamer.load(tmp_path, compiled) is compiled
    assert torch.equal(other(x()), model(x()))


def test_a_recipe_is_attached_to_a_loaded_model(tmp_path: Path) -> None:
    gossamer.save(prepared("rigl", "50%", steps=2), tmp_path)
    model = gossamer.load(tmp_path, dense())
    recipe = recipes.make("rigl", "50%")
    recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=20)
    assert list(recipe.layers) == ["0", "3"]
