"""Refused loads: a damaged state, file or description leaves the model and the folder as is."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import CheckpointError, StructureError
from support.saved_models import bits, damage_description, dense, sparse, unchanged

# The layers are small.
pytestmark = pytest.mark.filterwarnings("ignore:.*outputs that read nothing")


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if n != name}


STATES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "lacks": lambda s: without(s, "2.bias"),
    "lacks the bias of a layer": lambda s: without(s, "3.bias"),
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
