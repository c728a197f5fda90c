import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer.errors import CheckpointError, StructureError
from gossamer.train.checkpoint import load_checkpoint, restore, save_checkpoint


def same(a: Any, b: Any) -> bool:
    """Bit-equal, and of the same kinds all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return torch.equal(*bits)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


def example() -> dict[str, Any]:
    shared = torch.arange(6.0)
    return {
        "step": 7,
        "lr": 0.1 + 0.2,
        "limits": (math.inf, math.nan, -0.0),
        "text": "2:4:v4 “é”",
        "nothing": [None, True, False, [], {}, ()],
        "tensors": {
            "float32": torch.tensor([math.nan, math.inf, -0.0, 1e-45]),
            "float64": torch.randn(2, 3, dtype=torch.float64),
            "bfloat16": torch.randn(5).bfloat16(),
            "int64": torch.tensor([-1, 2**62]),
            "uint8": torch.arange(256, dtype=torch.uint8),
            "int32": torch.zeros(0, 4, dtype=torch.int32),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(3.5),
            "strided": torch.arange(12.0).view(3, 4).t()[::2],
            "shared": [shared, shared, shared[2:]],
        },
        "numbers": {0: {"exp_avg": torch.ones(2)}, 12: "twelve"},
        "a/b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
    }


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, example() | {"tensors": example()["tensors"]})
    state = example()
    save_checkpoint(file, state)
    assert same(load_checkpoint(file), state)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def small_file(path: Path) -> bytes:
    state = {"step": 3, "w": torch.arange(20.0), "deep": {1: [torch.ones(3, dtype=torch.int32)]}}
    save_checkpoint(path, state)
    return path.read_bytes()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    content = small_file(file)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(file)
    file.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        load_checkpoint(file)


@pytest.mark.parametrize(
    "bit", [0x20, *(pytest.param(bit, marks=pytest.mark.slow) for bit in (1, 0x80))]
)
def test_every_flipped_bit_is_refused_or_harmless(bit: int, tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    content = small_file(file)
    intact = load_checkpoint(file)
    refused = 0
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= bit
        file.write_bytes(altered)
        try:
            state = load_checkpoint(file)
        except CheckpointError:
            refused += 1
        else:
            assert same(state, intact), place
    assert refused >= 0.95 * len(content) > 333


def test_swapped_tensors_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, {"aa": torch.zeros(4), "bb": torch.ones(4)})
    content = file.read_bytes()
    swapped = content.replace(b'"aa":{', b'"xx":{').replace(b'"bb":{', b'"aa":{')
    file.write_bytes(swapped.replace(b'"xx":{', b'"bb":{'))
    assert file.read_bytes() != content
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(file)


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)
    file = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"w": torch.ones(2)}, file, metadata)
        with pytest.raises(CheckpointError, match="no checkpoint of a gossamer run"):
            load_checkpoint(file)


@pytest.mark.parametrize(
    ("state", "message"),
    [({"a": [{1.5: 0}]}, "keys must be"), ({"a": [object()]}, "holds a object at a/0")],
)
def test_what_cannot_be_stored_is_named_and_nothing_written(
    tmp_path: Path, state: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "c", state)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.safetensors"
    content = small_file(file)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        save_checkpoint(file, {"step": 4})
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "missing" / "c", {"step": 4})


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_model_and_optimizer_come_back_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "c"
    model, optimizer = trained()
    save_checkpoint(file, {"m": model.state_dict(), "o": optimizer.state_dict()})
    other, other_optimizer = trained()
    assert not same(other.state_dict(), model.state_dict())
    restore({"m": other, "o": other_optimizer}, load_checkpoint(file), file)
    assert same(other.state_dict(), model.state_dict())
    assert same(other_optimizer.state_dict(), optimizer.state_dict())


class Refusing(nn.Linear):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(state_dict, *args, **kwargs)
        if state_dict["weight"].sum() == 0:
            raise StructureError("no entry is kept")
        return result


def test_restore_changes_all_or_nothing() -> None:
    model, optimizer = trained()
    refusing = Refusing(2, 2)
    targets = {"m": model, "o": optimizer, "r": refusing}
    good = {name: target.state_dict() for name, target in zip("mo", trained(), strict=True)}
    good["r"] = Refusing(2, 2).state_dict()
    before = {name: example_of(target) for name, target in targets.items()}

    zeros = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    shape = good["m"] | {"0.weight": torch.zeros(8, 5)}
    dtype = good["m"] | {"0.weight": torch.zeros(8, 4, dtype=torch.float64)}
    lacking = {key: value for key, value in good["m"].items() if key != "1.bias"}
    groups = good["o"] | {"param_groups": []}
    for states, message in [
        ({"m": good["m"]}, r"holds \['m'\], needed are"),
        (good | {"r": zeros}, "does not fit r .no entry is kept"),
        (good | {"m": shape}, r"0.weight in m as torch.float32 \[8, 5\], needed is .*\[8, 4\]"),
        (good | {"m": dtype}, "0.weight in m as torch.float64"),
        (good | {"m": lacking}, "lacks 1.bias"),
        (good | {"m": good["m"] | {"new": torch.zeros(1)}}, "has an unknown new"),
        (good | {"o": groups}, "does not fit o"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            restore(targets, states, "c")
        assert all(same(example_of(targets[name]), before[name]) for name in targets)
    restore(targets, good, "c")
    assert not same(example_of(model), before["m"])


def example_of(target: Any) -> dict[str, Any]:
    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        return value

    return dict(copied(target.state_dict()))
