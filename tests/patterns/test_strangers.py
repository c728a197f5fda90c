"""Patterns from outside the package: trained, moved, resumed, compiled, saved, or refused."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer
from gossamer.errors import GossamerError, PatternError, StructureError
from gossamer.masks import check_mask, check_structure, magnitude_mask, mask_from_score, random_mask
from gossamer.patterns import pattern_of_fields, plain_fields
from gossamer.recipes.base.registry import RECIPES, make
from support import oracle, stranger
from support.recipe_course import STEPS, Course, bits, mask_of, parts_of

stranger.band()
TEXTS = ["band 4 of 16", "band 16 of 16", "tiled 1", "tiled 8", "diagonals 0.75", "lower triangle"]
MOVING = ["band 4 of 16", "tiled 8"]
QUICK = {"static", "set", "rigl", "ste", "gmp"}
pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(text: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 8))
    return gossamer.sparsify(nn.Sequential(*layers), text, exclude="3")  # type: ignore[return-value]


@pytest.mark.parametrize("text", TEXTS)
def test_masks_and_products_are_those_of_the_dense_formula(text: str) -> None:
    pattern = gossamer.parse_pattern(text.upper())
    assert str(pattern) == text
    assert pattern_of_fields(plain_fields(pattern)) == pattern
    dense = torch.randn(32, 32)
    dense[3, 5], dense[8, 8] = torch.nan, torch.inf
    for mask in (magnitude_mask(dense, text), mask_from_score(dense.nan_to_num(), text)):
        check_mask(mask, text)
        assert int(mask.sum()) == pattern.count(32, 32)
    assert torch.equal(random_mask((32, 32), text, 3), random_mask((32, 32), text, 3))
    weight = gossamer.SparseWeight.from_dense(torch.randn(32, 32), text)
    check_structure(weight.structure, pattern)
    assert weight.layout.vector == pattern.panel
    x, g, w = torch.randn(5, 32, requires_grad=True), torch.randn(5, 32), weight.to_dense().detach()
    y = gossamer.spmm(x, weight)
    y.backward(g)
    magnitudes = oracle.spmm(x.detach().abs(), w.abs())
    oracle.assert_close(y.detach(), oracle.spmm(x.detach(), w), magnitudes)
    assert x.grad is not None
    oracle.assert_close(x.grad, oracle.spmm_t(g, w), oracle.spmm_t(g.abs(), w.abs()))
    assert weight.values.grad is not None


@pytest.mark.parametrize("text", TEXTS)
def test_a_mask_of_another_place_is_refused(text: str) -> None:
    model = model_of(text)
    weight = model[0].weight
    before = bits(model.state_dict())
    wrong = weight.mask()
    grown, dropped = (~wrong).nonzero()[-1], wrong.nonzero()[0]
    wrong[tuple(grown)], wrong[tuple(dropped)] = True, False
    if text == "band 4 of 16":  # as many entries, out of the band
        wrong = weight.mask().roll(16, 1)
    with pytest.raises(StructureError):
        weight.set_mask(wrong)
    with pytest.raises(StructureError):
        check_mask(torch.zeros(32, 32, dtype=torch.bool), text)
    assert bits(model.state_dict()) == before


def course(name: str, text: str, **options: object) -> Course:
    known = {"distribution": "uniform"} if name in ("set", "rigl") else {}
    return Course(name, pattern=text, **known, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", MOVING)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in RECIPES]
)
def test_a_recipe_keeps_the_pattern_and_resumes_or_says_why_not(name: str, text: str) -> None:
    try:
        run = course(name, text)
    except GossamerError as error:
        assert text in str(error) or "n:m" in str(error)  # noqa: PT017
        assert name not in ("static", "set", "rigl", "ste")
        return
    first = {key: mask_of(part) for key, part in parts_of(run.model).items()}
    saved = None
    for t in range(STEPS):
        if t == STEPS // 2:
            saved = copy.deepcopy(run.state())
        run.step(t)
        for part in parts_of(run.model).values():
            if str(part.pattern) == text:
                check_mask(mask_of(part), text)
    if name in ("set", "rigl"):
        now = {key: mask_of(part) for key, part in parts_of(run.model).items()}
        assert any(not torch.equal(first[key], now[key]) for key in first)
    again = course(name, text, seed=7)
    again.load(pickle.loads(pickle.dumps(saved)))  # noqa: S301
    again.run(STEPS // 2)
    assert bits(again.state()) == bits(run.state())


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_a_pattern_with_one_mask_does_not_move(name: str) -> None:
    for text in ("lower triangle", "2:4:g2"):
        with pytest.raises(PatternError, match=f"{text} was given.*single entries"):
            make(name, text)


def test_set_keeps_what_has_the_highest_rank() -> None:
    """What stays has the largest magnitudes; as many others grow as were dropped."""
    run = course("set", "band 4 of 16", fraction=0.5, every=1)
    weight = parts_of(run.model)["0"].weight
    before, old = weight.mask(), weight.to_dense().detach()
    run.step(0)
    run.step(1)
    now = weight.mask()
    assert int(now.sum()) == int(before.sum())
    gone = before & ~now
    assert 0 < int(gone.sum()) <= weight.nnz // 2
    assert old[gone].abs().mean() < old[before].abs().mean()


@pytest.mark.parametrize("text", TEXTS)
def test_saved_loaded_and_densified(text: str, tmp_path: Path) -> None:
    model = model_of(text)
    x = torch.randn(3, 32)
    y = model(x)
    gossamer.save(model, tmp_path)
    dense = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 8))
    loaded = gossamer.load(tmp_path, dense)
    assert [str(loaded[i].pattern) for i in (0, 2)] == [text, text]
    assert torch.equal(loaded(x), y)
    model_of(text).load_state_dict(model.state_dict())
    assert text in str(gossamer.summary(model))
    assert text in repr(model)
    torch.testing.assert_close(gossamer.densify(loaded)(x), y)


def test_a_state_of_other_fields_is_refused_and_longer_ones_fit() -> None:
    near, far = gossamer.parse_pattern("band 4 of 16"), gossamer.parse_pattern("band 4 of 8")
    weight = gossamer.SparseWeight.from_dense(torch.randn(32, 32), near)
    other = gossamer.SparseWeight.from_dense(torch.randn(32, 32), far)
    with pytest.raises(StructureError, match=r"band 4 of 8 .*band 4 of 16"):
        weight.load_state_dict(other.state_dict())
    wide = gossamer.parse_pattern("band 16 of 16")
    other.set_mask(random_mask((32, 32), wide), pattern=wide)  # whose descriptor is longer
    assert gossamer.weight.descriptor.read(other.descriptor)[0] == wide
    diagonal = gossamer.SparseWeight.from_dense(torch.randn(32, 32), "diagonals 0.75")
    same = gossamer.SparseWeight.from_dense(torch.randn(32, 32), stranger.Diagonals(0.7500000001))
    same.load_state_dict(diagonal.state_dict())  # of as many entries
    assert same.pattern == diagonal.pattern
    assert torch.equal(same.descriptor, diagonal.descriptor)


def test_a_damaged_descriptor_is_refused() -> None:
    weight = gossamer.SparseWeight.from_dense(torch.randn(32, 32), "band 4 of 16")
    state, generator = weight.state_dict(), torch.Generator().manual_seed(0)
    before = bits(state)
    for _ in range(200):
        damaged = state["descriptor"].clone()
        at = int(torch.randint(5, len(damaged), (), generator=generator))
        damaged[at] ^= 1 << int(torch.randint(63, (), generator=generator))
        with pytest.raises(StructureError):
            weight.load_state_dict({**state, "descriptor": damaged})
        assert bits(weight.state_dict()) == before


def test_a_convolution_takes_it() -> None:
    conv = nn.Conv2d(8, 16, 3)
    sparse = gossamer.sparsify(nn.Sequential(conv), "tiled 8")
    check_mask(sparse[0].mask(), "tiled 8")
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(gossamer.densify(sparse)(x), sparse(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
@pytest.mark.parametrize("text", ["band 4 of 16", "tiled 8"])
def test_compiled_and_exported(text: str) -> None:
    model = model_of(text).eval()
    x = torch.randn(4, 32)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


# ---- a missing module ---------------------------------------------------------------------------


@pytest.fixture
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, nn.Module]:
    """A saved model, in a process that does not know its pattern."""
    model = model_of("band 4 of 16")
    model[2] = gossamer.SparseLinear(32, 32, pattern="tiled 8")
    gossamer.save(model, tmp_path)
    from gossamer.patterns import registry

    monkeypatch.delitem(registry._KINDS, "Band")
    return tmp_path, model


def dense_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 8))


def test_an_error_names_the_missing_pattern(forgotten: tuple[Path, nn.Module]) -> None:
    folder, model = forgotten
    dense = dense_model()
    before = bits(dense.state_dict())
    with pytest.raises(PatternError, match="'Band' was saved, which is not registered here"):
        gossamer.load(folder, dense)
    with pytest.raises(PatternError, match=r"layer '0'.*'Band'"):
        gossamer.load(model.state_dict(), dense)
    assert bits(dense.state_dict()) == before
    other = gossamer.sparsify(dense_model(), "tiled 8", exclude="3")
    with pytest.raises(StructureError, match="'Band' was saved"):
        other.load_state_dict(model.state_dict())


@pytest.mark.parametrize("source", ["folder", "state"])
@pytest.mark.parametrize("into", ["dense", "sparse"])
def test_a_fallback_makes_dense_aloud(
    forgotten: tuple[Path, nn.Module], source: str, into: str
) -> None:
    folder, model = forgotten
    target = dense_model()
    if into == "sparse":
        target = gossamer.sparsify(target, "2:4", exclude="3")  # type: ignore[assignment]
    given = folder if source == "folder" else model.state_dict()
    with pytest.warns(UserWarning, match=r"0 \(Band\)"):
        loaded = gossamer.load(given, target, fallback="warn")
    assert type(loaded[0]) is nn.Linear
    assert str(loaded[2].pattern) == "tiled 8"
    x = torch.randn(3, 32)
    torch.testing.assert_close(loaded(x), model(x))
    assert torch.equal(loaded[0].weight != 0, model[0].weight.mask())


def test_a_single_layer_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = gossamer.nn.MaskedLinear.from_dense(nn.Linear(32, 32), "band 4 of 16")
    gossamer.save(layer, tmp_path)
    kept = layer.used_weight()
    from gossamer.patterns import registry

    monkeypatch.delitem(registry._KINDS, "Band")
    with pytest.raises(PatternError, match="'Band'"):
        gossamer.load(tmp_path)
    with pytest.warns(UserWarning, match=r"the model \(Band\)"):
        loaded = gossamer.load(tmp_path, fallback="warn")
    assert torch.equal(loaded.weight, kept)
    with pytest.raises(gossamer.ArgumentError, match="fallback"):
        gossamer.load(tmp_path, fallback="quiet")  # type: ignore[arg-type]


def test_the_example_learns() -> None:
    torch.manual_seed(0)
    model, loss = stranger.band().main(120)
    assert loss < 0.7
    assert all(str(model[i].pattern) == "band 4 of 16" for i in (0, 2))
    assert sys.modules["band_example"].Band is type(model[0].pattern)
