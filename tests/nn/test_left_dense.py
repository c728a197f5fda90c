"""Nothing stays dense in silence: every kind of weight is named with its share, one line a kind."""

import warnings

import pytest
import torch
from torch import nn

from gossamer import densify, recipes, sparsify, summary
from gossamer.errors import DTypeError, PatternError


class Parameters(nn.Module):
    """A module that holds parameters of given sizes under given names."""

    def __init__(self, **sizes: tuple[int, ...]) -> None:
        super().__init__()
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(size)))


class Subclass(nn.Linear):
    """A linear layer of somebody's own."""


class OwnLSTM(nn.LSTM):
    """A recurrent layer of somebody's own."""


class Convolution(nn.Conv1d):
    """A convolution of somebody's own."""


KINDS = {
    "experts": (Parameters(up_proj=(4, 8, 16)), "matrices stacked in one parameter", 512),
    "own lstm": (OwnLSTM(16, 8), "recurrent matrices", 4 * 8 * 24),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), "depthwise convolutions", 72),
    "transposed": (nn.ConvTranspose2d(4, 8, 3), "ConvTranspose2d; only nn.Conv1d", 288),
    "own convolution": (Convolution(4, 8, 3), "Convolution; only nn.Conv1d", 96),
    "bare": (Parameters(projection=(8, 16)), "bare matrices", 128),
    "subclass": (Subclass(16, 8), "Subclass; only nn.Linear itself", 128),
}


def told_by_sparsify(model: nn.Module, **options: object) -> list[str]:
    """The lines of the warning."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sparsify(model, "2:4", **options)
    assert len(told) <= 1
    return str(told[0].message).splitlines() if told else []


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_named_with_its_share(name: str) -> None:
    part, kind, entries = KINDS[name]
    model = nn.Sequential(nn.Linear(16, 16, bias=False), part)
    share = 100 * entries / (256 + entries)
    lines = told_by_sparsify(model)
    (line,) = [line for line in lines if kind in line]
    assert f"{share:.3g} % of the weights" in line
    assert len(lines) == 1
    assert f"dense: {line.removeprefix('sparsify left dense: ').strip()}" in str(summary(model))


def test_one_line_per_kind_names_three_and_counts_the_rest() -> None:
    model = nn.Sequential(nn.Linear(8, 8), *(Convolution(4, 4, 3) for _ in range(5)), OwnLSTM(8, 4))
    convolutions, recurrent = told_by_sparsify(model)
    assert "1, 2, 3 and 2 more (Convolution; only nn.Conv1d, Conv2d and Conv3d" in convolutions
    assert "6.weight_ih_l0, 6.weight_hh_l0 (recurrent matrices)" in recurrent


def test_what_is_excluded_or_not_included_is_not_told() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), Convolution(4, 4, 3), Parameters(bare=(8, 8)))

    assert told_by_sparsify(model(), exclude=["1", "2.bare"]) == []
    assert told_by_sparsify(model(), include="0") == []
    assert told_by_sparsify(model(), overrides={"1": None, "2": None}) == []
    assert "2.bare (bare" in told_by_sparsify(model(), exclude="1")[0]
    with pytest.raises(PatternError, match="matches no module"):
        sparsify(model(), "2:4", exclude="0.weight")  # it would not keep the layer dense


def test_vectors_norms_and_tables_are_no_such_weights() -> None:
    model = nn.Sequential(
        nn.Embedding(10, 8),
        nn.LayerNorm([4, 8]),
        Parameters(token=(1, 1, 8)),
        nn.Linear(8, 8),
        Parameters(up_bias=(4, 8)),
    )
    assert told_by_sparsify(model) == []
    assert "dense: 0.weight (embedding tables), 55.6 % of the weights" in str(summary(model))


def test_a_model_without_layers_to_swap_is_told_what_it_has() -> None:
    with pytest.raises(PatternError, match=r"\(ConvTranspose2d; .*\), 100 % of the weights"):
        sparsify(nn.ConvTranspose2d(4, 4, 3), "2:4")


def test_recipes_tell_the_same() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(4, 4, 3))
    with pytest.warns(UserWarning, match=r"1 \(convolutions\)"):
        recipes.SLoPe("2:4").prepare(model)


def test_summary_names_linear_layers_that_stayed_dense() -> None:
    model = sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "2:4", exclude="1")
    assert "dense: 1 (linear layers), 50 % of the weights" in str(summary(model))
    assert summary(densify(model)).dense_kinds[0].share == 1.0


@pytest.mark.parametrize("globs", [5, None, [1], [b"a"], object()])
def test_globs_that_are_no_texts(globs: object) -> None:
    with pytest.raises(DTypeError, match="exclude"):
        sparsify(nn.Linear(8, 8), "2:4", exclude=globs)
