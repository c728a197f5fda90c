"""summary: every byte counted, against the same model dense."""

import pytest
import torch
from torch import nn

from gossamer import SparseLinear, sparsify, summary


def test_summary_counts_bytes() -> None:
    model = nn.Sequential(
        nn.Linear(64, 128), SparseLinear(128, 64, bias=False, pattern="2:4:v4"), nn.LayerNorm(64)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    report = summary(model, optimizer)
    dense, sparse, norm = report.layers
    count = 64 * 128 + 128
    assert (dense.name, dense.kind, dense.pattern, dense.density) == ("0", "Linear", None, 1.0)
    # AdamW: two moments a value, and a step counter of 4 bytes a parameter.
    assert (dense.values, dense.structure, dense.gradient) == (4 * count, 0, 4 * count)
    assert dense.optimizer == 8 * count + 8
    assert dense.dense == dense.total
    nnz = 64 * 128 // 2
    assert (sparse.name, sparse.pattern, sparse.density) == ("1", "2:4:v4", 0.5)
    assert (sparse.values, sparse.gradient, sparse.optimizer) == (4 * nnz, 4 * nnz, 8 * nnz + 4)
    assert sparse.structure == nnz // 4 + 64
    assert sparse.dense == 16 * 64 * 128 + 4
    assert norm.total == norm.dense == 4 * 4 * 128 + 8
    assert report.total == sum(layer.total for layer in report.layers)
    assert report.ratio == report.total / report.dense
    actual = sum(p.nbytes + p.grad.nbytes for p in model.parameters())
    actual += sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    assert report.total == actual + sparse.structure
    text = str(report)
    assert "2:4:v4" in text
    assert f"{report.ratio:.3f} of dense" in text


def test_summary_of_shared_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    sparsify(model, "2:4")
    model[2].requires_grad_(False)
    report = summary(model)
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert report.layers[1].gradient == 0
    assert report.layers[1].dense == 4 * (16 * 16 + 16)
    assert sum(layer.values for layer in report.layers) == sum(p.nbytes for p in model.parameters())
    empty = summary(nn.ReLU())
    assert (empty.total, empty.ratio) == (0, 1.0)
    assert summary(SparseLinear(8, 4, pattern="100%", bias=False)).layers[0].dense == 2 * 4 * 32


@pytest.mark.parametrize("pattern", ["2:4:v4", "1:8:v4"])
def test_training_state_of_a_wide_layer_is_near_its_density(pattern: str) -> None:
    model = SparseLinear(768, 256, bias=False, pattern=pattern)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 768)).sum().backward()
    optimizer.step()
    assert summary(model, optimizer).ratio < model.weight.density * 1.05
