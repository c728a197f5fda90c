"""Sharded weights beside ordinary ones: moves, refusals, gradients, and bytes on the wire."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import ranks, ranks_cases
from support.ranks_course import bits

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    first, second = ranks.run(2, ranks_cases.shards)
    assert first.keys() == second.keys()
    return first


def test_bytes_are_density_times_dense(found: dict[str, Any]) -> None:
    # Two gathers and one reduction of float32, of 64 x 32 and 16 x 64 entries.
    dense = 3 * 4 * (64 * 32 + 16 * 64)
    assert found["bytes"] == {
        "dense": dense, "2:4:v4": dense // 2, "1:8:v4": dense // 8, "75%": dense // 4,
    }  # fmt: skip


@pytest.mark.parametrize("case", ["75%", "block 4x4 50%", "double pruned"])
def test_a_mask_that_moves_on_shards_is_bit_equal(case: str, found: dict[str, Any]) -> None:
    sharded, single = found[case]
    assert bits(sharded) == bits(single)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("gathered", "DTypeError: set_mask: FSDP has gathered the values of"),
        ("other count", "DTypeError: set_mask: values is a DTensor"),
        ("outside", "DTypeError: the values of weight: SparseWeight(64x32"),
        ("STE", "RecipeError: STE reads whole weights between the steps, and 0.weight is sharded"),
        ("GMP", "RecipeError: GMP reads whole weights between the steps, and 0.weight is"),
        ("SLoPe", "RecipeError: SLoPe reads whole weights between the steps, and 0."),
    ],
)
def test_what_shards_cannot_do_is_refused(case: str, text: str, found: dict[str, Any]) -> None:
    assert found[case].startswith(text), found[case]
    assert found["unchanged"]


def test_rigl_sees_micro_batches_that_are_not_reduced(found: dict[str, Any]) -> None:
    (pairs, late), (also, early) = found["accumulated"]
    assert pairs == also == 2
    for name, tensor in early.items():
        torch.testing.assert_close(late[name], tensor, msg=name)


def test_masked_layers_and_sparse_activations_have_the_mean_gradient(
    found: dict[str, Any],
) -> None:
    pairs: list[tuple[Tensor, Tensor]] = [found["masked"], *found["activations"]]
    for sharded, single in pairs:
        assert torch.equal(sharded, single)


def test_save_gathers_shards_and_one_process_writes(tmp_path: Path) -> None:
    for found in ranks.run(2, ranks_cases.saved, str(tmp_path / "saved")):
        loaded, single = found["loaded"]
        assert bits(loaded) == bits(single)
        assert found["kind"] == "SparseLinear"
        assert "load before fully_shard" in found["into shards"]
        assert found["no folder"].startswith("CheckpointError")  # on both
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"model.safetensors", "file"}
