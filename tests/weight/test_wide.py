"""Weights whose rows share columns beyond a panel: every way in checks it, and nothing is lost."""

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gossamer
from gossamer import SparseLinear, SparseWeight, backend
from gossamer.errors import PatternError, StructureError
from gossamer.masks import magnitude_mask
from gossamer.nn import MaskedLinear
from gossamer.patterns import NM, Pattern, Unstructured, parse_pattern
from support.grids import covering
from support.oracle import WIDE, sizes

PARTS = "a part of the 32x1 tile at"
GROUPS, ANYWHERE = NM(2, 4, 32), Unstructured(0.5, 32)


def narrow(pattern: Pattern) -> SparseWeight:
    """A weight with the layout and the count of `pattern`, in which only 8 rows agree."""
    kind = NM(2, 4, 8) if isinstance(pattern, NM) else Unstructured(0.5, 8)
    return SparseWeight.from_dense(torch.randn(64, 16), kind)


@pytest.mark.parametrize("pattern", [GROUPS, ANYWHERE], ids=str)
def test_rows_that_differ_are_refused_wherever_they_come_from(pattern: Pattern) -> None:
    weight = narrow(pattern)
    own = SparseWeight.from_dense(torch.randn(64, 16), pattern)
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(StructureError, match=PARTS):
        SparseWeight(weight.values, weight.structure, pattern)
    indptr, columns, perm = backend.decode_csr(weight.structure)
    with pytest.raises(StructureError, match=PARTS):
        SparseWeight.from_csr(indptr, columns, weight.values.detach()[perm], (64, 16), pattern)
    with pytest.raises(StructureError, match=PARTS):
        SparseWeight.from_torch_sparse(weight.to_torch_sparse(), pattern)
    with pytest.raises(StructureError, match="each 32x1 tile is kept or dropped as one"):
        SparseWeight.from_dense(torch.randn(64, 16), pattern, mask=weight.mask())
    with pytest.raises(StructureError, match="each 32x1 tile is kept or dropped as one"):
        own.set_mask(weight.mask())
    with pytest.raises(StructureError, match=PARTS):
        own.set_mask(weight.structure)
    with pytest.raises(StructureError, match=PARTS):
        own.set_mask(weight.mask().nonzero().unbind(1))
    damaged = {**own.state_dict(), "indices": weight.indices}
    if weight.indptr is not None:
        damaged["indptr"] = weight.indptr
    with pytest.raises(StructureError, match=PARTS):
        own.load_state_dict(damaged)
    with pytest.raises(StructureError, match=r"holds .*:v8 of 64x16.*the module is .*:v32"):
        own.load_state_dict(weight.state_dict())
    assert before.keys() == own.state_dict().keys()
    assert all(torch.equal(before[k], t) for k, t in own.state_dict().items())


@pytest.mark.parametrize("pattern", [GROUPS, ANYWHERE], ids=str)
def test_a_masked_layer_refuses_them_too(pattern: Pattern) -> None:
    weight = narrow(pattern)
    layer = MaskedLinear.from_dense(nn.Linear(16, 64), pattern)
    with pytest.raises(StructureError, match="each 32x1 tile is kept or dropped as one"):
        layer.set_mask(weight.mask())
    damaged = {**layer.state_dict(), "indices": weight.indices}
    if weight.indptr is not None:
        damaged["indptr"] = weight.indptr
    with pytest.raises(StructureError, match=PARTS):
        layer.load_state_dict(damaged)


def test_zeros_of_a_dense_model_that_do_not_agree_are_kept_by_union() -> None:
    dense = torch.zeros(64, 8)
    dense[3, 1] = dense[40, 5] = 2.0
    weight = SparseWeight.from_dense(dense, "nonzeros:v32")
    assert str(weight.pattern) == str(Unstructured.keeping(64, 512, 32))
    assert torch.equal(weight.to_dense(), dense)
    assert weight.mask().sum() == 64
    with pytest.raises(StructureError, match="rows 0 and 3 differ"):
        SparseWeight.from_torch_sparse(dense.to_sparse(), "nonzeros:v32")
    dense[:8, 1] = 2.0
    dense[40:48, 5] = 2.0
    with pytest.raises(StructureError, match=PARTS):
        SparseWeight.from_torch_sparse(dense.to_sparse(), "nonzeros:v32")


@pytest.mark.parametrize(
    ("pattern", "way"), covering(WIDE, ["state", "file", "pickle", "deepcopy", "masked"])
)
def test_a_wide_layer_goes_round(pattern: str, way: str, tmp_path) -> None:
    rows, cols = sizes(pattern)
    layer = SparseLinear(cols, rows, pattern=pattern)
    x = torch.randn(3, cols)
    if way == "masked":
        first, second = (MaskedLinear.from_dense(nn.Linear(cols, rows), pattern) for _ in range(2))
        first(x)
        second.load_state_dict(first.state_dict())
        assert str(second.pattern) == pattern
        assert torch.equal(second(x), first(x))
        again = first.to_sparse()
        assert str(again.weight.pattern) == pattern
        torch.testing.assert_close(again(x), first(x))
        return
    if way in ("pickle", "deepcopy"):
        other = (
            copy.deepcopy(layer) if way == "deepcopy" else pickle.loads(pickle.dumps(layer))  # noqa: S301
        )
    else:
        state = layer.state_dict()
        if way == "file":
            save_file(state, tmp_path / "layer.safetensors")
            state = load_file(tmp_path / "layer.safetensors")
        other = SparseLinear(cols, rows, pattern=pattern)
        other.load_state_dict(state)
    assert str(other.weight.pattern) == pattern
    assert other.weight.pattern == parse_pattern(pattern)
    assert torch.equal(other(x), layer(x))


def test_tiles_leave_as_blocks_of_all_their_rows() -> None:
    weight = SparseWeight.from_dense(torch.randn(64, 16), "75%:v32")
    matrix = weight.to_torch_sparse(torch.sparse_bsr)
    assert matrix.values().shape == (8, 32, 1)
    assert np.array_equal(matrix.to_dense(), weight.to_dense().detach())


def test_a_model_is_made_wide_described_and_made_dense_again() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 48))
    dense = [layer.weight.detach().clone() for layer in model[::2]]
    with pytest.raises(PatternError, match=r"out_features=48.*2:4:v32.*multiple of 32.*2:4:v16"):
        gossamer.sparsify(model, "2:4:v32")
    model = gossamer.sparsify(model, "2:4:v32", overrides={"2": "50%:v16"})
    for layer, weight, pattern in zip(model[::2], dense, ("2:4:v32", "50%:v16"), strict=True):
        assert torch.equal(layer.weight.mask(), magnitude_mask(weight, pattern))
    assert "2:4:v32" in str(gossamer.summary(model))
    assert "50%:v16" in str(gossamer.summary(model))
    x = torch.randn(5, 16)
    before = model(x)
    torch.testing.assert_close(gossamer.densify(model)(x), before)
