"""save, load and check_state: every kind of layer comes back, and a refusal changes nothing."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import CheckpointError, SparseLinear, StructureError, recipes
from gossamer.io.files import read_file, write_file

# The layers are small.
pytestmark = pytest.mark.filterwarnings("ignore:.*outputs that read nothing")


def dense(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 16))


def sparse(seed: int = 0, pattern: str = "2:4", width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return gossamer.sparsify(dense(width), pattern)


def bits(model: nn.Module) -> dict[str, Any]:
    """All that a load may change, the buffers that are not saved too."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, Any] = {name: (id(t), t.detach().clone()) for name, t in tensors.items()}
    return found | {"": str(model)}


def unchanged(before: dict[str, Any], model: nn.Module) -> bool:
    after = bits(model)
    return before.keys() == after.keys() and all(
        a == after[n] if n == "" else a[0] == after[n][0] and torch.equal(a[1], after[n][1])
        for n, a in before.items()
    )


def x() -> Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(3))


def prepared(name: str, pattern: str = "2:4", steps: int = 6, **options: Any) -> nn.Module:
    """A model that a recipe has trained for some steps, so that its buffers are not as new."""
    torch.manual_seed(1)
    recipe = recipes.make(name, pattern, **options)
    model = recipe.prepare(dense())
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=1e-3)
    recipe.attach(model, optimizer, total_steps=20)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x()).square().sum().backward()
        optimizer.step()
    recipe.detach()
    return model


def adapted() -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(
        gossamer.nn.AdaptedLinear(16, 16, pattern="2:4", backward="double_pruned")
    )
    model[0].insert(2)
    nn.init.normal_(model[0].adapter.right)
    return model


def tied_dense() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    model[2].bias = model[0].bias
    return model


def tied() -> nn.Module:
    return gossamer.sparsify(tied_dense(), "2:4", exclude="2")


def frozen() -> nn.Module:
    model = sparse()
    model[0].weight.values.requires_grad_(False)
    return model


def masked() -> nn.Module:
    layer = gossamer.nn.MaskedLinear.from_dense(
        nn.Linear(16, 16), "block 4x4 50%", reselect_each_forward=False, gradient="kept",
        target=gossamer.Unstructured(0.123456789012345),
    )  # fmt: skip
    return nn.Sequential(layer)


def rectifier() -> nn.Module:
    return gossamer.sparsify_activations(dense_rectifier(), gate="float32")


def dense_rectifier() -> nn.Module:
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    return nn.Sequential(net, nn.Linear(16, 16))


RECIPES = (
    "ste",
    "srste",
    "slope",
    "fst",
    "sste",
    "bimask",
    "autosparse",
    "set",
    "gmp",
    "gmp-sparse",
)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "2:4": sparse,
    "50%": lambda: sparse(pattern="50%"),
    "2:4:v8": lambda: sparse(pattern="2:4:v8"),
    "block": lambda: sparse(pattern="block 4x4 75%"),
    "adapted": adapted,
    "tied": tied,
    "masked": masked,
    "factors": lambda: prepared("sparse-ift-factorized", "50%"),
    "parallel": lambda: prepared("sparse-ift-parallel", "50%"),
    "doped": lambda: prepared("sparse-ift-doped", "50%"),
    **{
        name: lambda n=name: prepared(n, "50%" if n in ("set", "gmp", "gmp-sparse") else "2:4")
        for name in RECIPES
    },
}


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


def dense_of(model: nn.Module) -> nn.Module:
    if len(model) == 4:
        return dense()
    return tied_dense() if len(model) == 3 else nn.Sequential(*(nn.Linear(16, 16) for _ in model))


def built(width: int, pattern: str = "2:4") -> nn.Module:
    return sparse(pattern=pattern, width=width)


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
    with pytest.raises(CheckpointError, match="sparsify_activations"):
        gossamer.load(tmp_path, linears)
    assert unchanged(before, linears)


def test_a_wrapped_model_has_the_names_of_its_inside(tmp_path: Path) -> None:
    model = sparse()
    gossamer.save(torch.compile(model, backend="eager"), tmp_path)
    other = sparse(5)
    compiled = torch.compile(other, backend="eager")
    assert gossamer.load(tmp_path, compiled) is compiled
    assert torch.equal(other(x()), model(x()))


def damage_description(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description, and write a checksum that fits it."""
    file = folder / "model.safetensors"
    tensors, metadata = read_file(file, "", "")
    description = json.loads(metadata["gossamer"])
    change(description)
    text = json.dumps(description)
    write_file(file, tensors, text, {"format": "pt", "gossamer": text})


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if n != name}


STATES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "lacks": lambda s: without(s, "2.bias"),
    "lacks values": lambda s: without(s, "3.weight.values"),
    "lacks indices": lambda s: without(s, "3.weight.indices"),
    "lacks descriptor": lambda s: without(s, "3.weight.descriptor"),
    "unknown": lambda s: s | {"4.bias": torch.ones(1)},
    "shape": lambda s: s | {"2.weight": torch.ones(17)},
    "dtype": lambda s: s | {"2.weight": torch.ones(16, dtype=torch.int64)},
    "half": lambda s: s | {"3.weight.values": s["3.weight.values"].half()},
    "no tensor": lambda s: s | {"3.weight.indices": s["3.weight.indices"].tolist()},
    "text": lambda s: s | {"2.bias": "text"},
    "meta": lambda s: s | {"3.bias": s["3.bias"].to("meta")},
    "layout": lambda s: s | {"3.bias": s["3.bias"].to_sparse()},
    "indices": lambda s: s | {"3.weight.indices": torch.full_like(s["3.weight.indices"], 255)},
    "not names": lambda s: {1: torch.ones(1)},
}


@pytest.mark.parametrize("case", STATES)
@pytest.mark.parametrize("into", ["sparse", "dense", "other"])
def test_a_refused_state_changes_nothing(case: str, into: str) -> None:
    model = {"sparse": lambda: sparse(7), "dense": dense, "other": lambda: sparse(7, "50%")}[into]()
    state = STATES[case]({n: t.clone() for n, t in sparse(8).state_dict().items()})
    before = bits(model)
    with pytest.raises(gossamer.GossamerError):
        gossamer.load(state, model)
    assert unchanged(before, model)
    if into == "sparse":
        with pytest.raises(gossamer.GossamerError):
            gossamer.check_state(model, state)
        assert unchanged(before, model)


def test_check_state_asks_the_modules_themselves() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.LSTM(4, 4), sparse())
    state = copy.deepcopy(model).state_dict()
    state["0.weight"], state["0.bias"] = torch.ones(4, 3), torch.ones(4)
    assert "lazy" in str(model).lower()
    gossamer.check_state(model, state)
    assert nn.parameter.is_lazy(model[0].weight)
    with pytest.raises(CheckpointError, match=r"size mismatch for 2\.weight_hh_l0"):
        gossamer.check_state(model, state | {"2.weight_hh_l0": torch.ones(2)})
    gossamer.check_state(model, {"2.bias_ih_l0": torch.ones(16)}, strict=False)
    with pytest.raises(CheckpointError, match=r"lacks .*0.weight"):
        gossamer.check_state(model, {})
    gossamer.load(state, model)
    assert torch.equal(model[0].weight, torch.ones(4, 3))


DESCRIPTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda d: d.update(format="gossamer-model-99"),
    "layers": lambda d: d.update(layers=[]),
    "kind": lambda d: d["layers"]["0"].update(kind="Linear"),
    "transpose": lambda d: d["layers"]["0"].update(transpose=3),
    "backward": lambda d: d["layers"]["0"].update(backward="transposable"),
    "no option": lambda d: d["layers"]["0"].pop("transpose"),
    "no place": lambda d: d["layers"].update({"9": d["layers"]["0"]}),
    "other place": lambda d: d["layers"].update({"2": d["layers"]["0"]}),
    "lost layer": lambda d: d["layers"].pop("0"),
    "no dict": lambda d: d["layers"].update({"0": 7}),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_an_edited_description_is_refused(case: str, tmp_path: Path) -> None:
    gossamer.save(sparse(), tmp_path)
    damage_description(tmp_path, DESCRIPTIONS[case])
    model = dense()
    before = bits(model)
    with pytest.raises(gossamer.GossamerError):
        gossamer.load(tmp_path, model)
    assert unchanged(before, model)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    gossamer.save(sparse(), tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    model = dense()
    before = bits(model)
    for place in (3, 9, 40, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(gossamer.GossamerError):
            gossamer.load(tmp_path, model)
    for length in (0, 7, 100, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            gossamer.load(tmp_path, model)
    file.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        gossamer.load(tmp_path, model)
    assert unchanged(before, model)


def test_what_cannot_be_saved_leaves_the_folder(tmp_path: Path) -> None:
    gossamer.save(sparse(), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    damaged = sparse()
    damaged[0].weight.indices.fill_(255)
    with pytest.raises(StructureError, match="written over"):
        gossamer.save(damaged, tmp_path)
    with pytest.raises(CheckpointError, match="meta device"):
        gossamer.save(nn.Linear(2, 2, device="meta"), tmp_path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        gossamer.save(sparse(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == content


def test_a_recipe_is_attached_to_a_loaded_model(tmp_path: Path) -> None:
    gossamer.save(prepared("rigl", "50%", steps=2), tmp_path)
    model = gossamer.load(tmp_path, dense())
    recipe = recipes.make("rigl", "50%")
    recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=20)
    assert list(recipe.layers) == ["0", "3"]
