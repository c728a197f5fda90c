"""Random structures: exact counts, the uniform law, the same mask for any number of threads, and
memory in proportion to the kept entries."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from gossamer import backend
from gossamer.errors import ShapeError
from gossamer.masks import check_mask, check_structure, random_mask, random_structure
from gossamer.nn import SparseLinear
from gossamer.patterns import Block, parse_pattern
from support.fences import ROOT

PATTERNS = [
    "2:4",
    "3:4",
    "1:8:v4",
    "7:64:v8",
    "5:5",
    "99%",
    "90%:v4",
    "60%",
    "30%:v8",
    "0%",
    "100%",
    "block 16x16 75%",
    "block 8x320 50%",
    "block 4x1 90%",
    "block 5x2 40%",
    "2:4:g3",
    "3:5:g1",
]
WIDE = ["2:4:v16", "3:5:v128", "70%:v32", "99%:v64", "0%:v16", "block 32x5 40%", "block 128x1 50%"]
# Wide enough for several blocks of columns and a narrow last one, and a multiple of every tile.
SHAPE, HIGH = (80, 640), (256, 640)
# A probability of an honest sampler that fails, per test: the seeds are fixed, so once and for all.
RARE = 1e-4

Draw = Callable[[int], np.ndarray]


@pytest.mark.parametrize("pattern", PATTERNS + WIDE)
def test_the_count_is_exact_and_the_structure_obeys_the_pattern(pattern: str) -> None:
    shape = HIGH if pattern in WIDE else SHAPE
    for seed in range(5 if pattern in PATTERNS else 2):
        structure = random_structure(shape, pattern, seed)
        backend.validate(structure, parse_pattern(pattern).count(*shape))
        check_structure(structure, parse_pattern(pattern))
        mask = random_mask(shape, pattern, seed)
        check_mask(mask, pattern)
        assert torch.equal(mask, backend.mask(structure))


@pytest.mark.parametrize("cols", [1, 255, 256, 257, 600])
@given(rows=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 2**64 - 1))
def test_any_count_of_entries_is_exact(cols: int, rows: int, share: float, seed: int) -> None:
    structure = random_structure((rows, cols), f"{100 * share:.4f}%", seed)
    backend.validate(structure, parse_pattern(f"{100 * share:.4f}%").count(rows, cols))


def test_a_weight_of_billions_of_entries_is_drawn() -> None:
    structure = random_structure((2**16, 2**16), "99.99%", seed=1)
    assert structure.nnz == round(2**32 * (1 - 0.9999))
    backend.validate(structure)


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(ShapeError, match="split the layer"):
        random_structure((2**16, 2**16), "0%")
    with pytest.raises(ShapeError, match="split the layer"):
        random_structure((2**17, 2**17), "2:4")
    with pytest.raises(ShapeError, match="split the layer"):
        random_structure((2**16, 2**16), "50%:v128")


# ---- the law -----------------------------------------------------------------------------------


def masks_have_equal_frequencies(draw: Draw, masks: int, draws: int) -> bool:
    """Whether the masks of a small weight pass a chi-square test of equal probabilities."""
    seen = Counter(draw(seed).tobytes() for seed in range(draws))
    assert len(seen) <= masks
    expected = draws / masks
    missing = masks - len(seen)
    statistic = sum((n - expected) ** 2 / expected for n in seen.values()) + missing * expected
    return bool(chi2.ppf(RARE, masks - 1) < statistic < chi2.ppf(1 - RARE, masks - 1))


@pytest.mark.parametrize(
    ("pattern", "shape", "masks"),
    [
        ("50%", (2, 4), comb(8, 4)),
        ("75%", (3, 4), comb(12, 3)),
        ("25%", (3, 4), comb(12, 3)),
        ("60%:v4", (8, 5), comb(10, 4)),
        ("2:4", (2, 8), 6**4),
        ("3:4", (2, 8), 4**4),
        ("1:4:v4", (8, 8), 4**4),
        ("60%:v16", (32, 5), comb(10, 4)),
        ("1:4:v32", (64, 8), 4**4),
        ("block 2x2 50%", (4, 8), comb(8, 4)),
        ("block 3x2 75%", (6, 8), comb(8, 2)),
        ("2:3:g1", (3, 6), 6**2),
        ("1:2:g1", (3, 4), 4**2),
    ],
)
def test_every_mask_of_a_pattern_is_equally_likely(
    pattern: str, shape: tuple[int, int], masks: int
) -> None:
    def draw(seed: int) -> np.ndarray:
        return random_mask(shape, pattern, seed).numpy()

    assert masks_have_equal_frequencies(draw, masks, 40 * masks)


def slots_and_cells_are_hypergeometric(draw: Draw, shape: tuple[int, int], draws: int) -> bool:
    """Whether the slots of a weight of several blocks are kept equally often, and counts of parts
    spread as they do without replacement."""
    rows, cols = shape
    total = np.zeros(shape)
    kept = int(draw(0).sum())
    slots = rows * cols
    parts = []
    for seed in range(draws):
        mask = draw(seed)
        total += mask
        parts.append([mask[0].sum(), mask[:, 256:].sum(), mask[: rows // 2, :256].sum()])
    expected = draws * kept / slots
    # Counts of slots sum to a constant per draw: their covariance scales the statistic.
    scale = (1 - kept / slots) * slots / (slots - 1)
    statistic = ((total - expected) ** 2).sum() / (expected * scale)
    if not chi2.ppf(RARE, slots - 1) < statistic < chi2.ppf(1 - RARE, slots - 1):
        return False
    sizes = np.array([cols, rows * (cols - 256), rows // 2 * 256])
    share = kept / slots
    variance = sizes * share * (1 - share) * (slots - sizes) / (slots - 1)
    ratio = np.var(parts, axis=0, ddof=1) / variance * (draws - 1)
    low, high = chi2.ppf(RARE, draws - 1), chi2.ppf(1 - RARE, draws - 1)
    return bool(((low < ratio) & (ratio < high)).all())


LARGE = (6, 300)


@pytest.mark.parametrize("pattern", ["90%", "98%", "40%"])
def test_slots_and_parts_of_several_blocks_follow_the_law(pattern: str) -> None:
    def draw(seed: int) -> np.ndarray:
        return random_mask(LARGE, pattern, seed).numpy()

    assert slots_and_cells_are_hypergeometric(draw, LARGE, 1500)


def with_a_fixed_count_per_row(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(LARGE[1]) < LARGE[1] // 10, (LARGE[0], 1)), axis=1)


def with_independent_entries(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(LARGE) < 0.1


def with_a_biased_integer(seed: int) -> np.ndarray:
    """The first distinct of `random bits % slots`, of 12 bits: some slots have 3 hits, some 2."""
    rng, slots = np.random.default_rng(seed), LARGE[0] * LARGE[1]
    drawn = list(dict.fromkeys((rng.integers(2**12, size=4000) % slots).tolist()))
    mask = np.zeros(slots, dtype=bool)
    mask[drawn[: slots // 10]] = True
    return mask.reshape(LARGE)


@pytest.mark.parametrize(
    "planted", [with_a_fixed_count_per_row, with_independent_entries, with_a_biased_integer]
)
def test_a_planted_bias_is_seen(planted: Draw) -> None:
    assert not slots_and_cells_are_hypergeometric(planted, LARGE, 1500)


def test_a_planted_bias_of_masks_is_seen() -> None:
    choices = list(product(combinations(range(4), 2), repeat=2))

    def draw(seed: int) -> np.ndarray:
        # A row's choice by a number of 4 bits modulo 6.
        first, second = np.random.default_rng(seed).integers(2**4, size=2) % 6
        return np.array(choices[6 * first + second])

    assert not masks_have_equal_frequencies(draw, 36, 40 * 36)


# ---- seeds, threads, memory --------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("pattern", ["2:4", "80%", "20%:v4", Block(16, 16, 0.5)])
def test_a_seed_names_one_mask_for_any_number_of_threads(pattern: str | Block) -> None:
    drawn = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        drawn.append(random_structure((512, 1280), pattern, seed=2**64 - 1))
    for other in drawn[1:]:
        assert torch.equal(drawn[0].indices, other.indices)
        assert drawn[0].indptr is None or torch.equal(drawn[0].indptr, other.indptr)
    fresh = random_structure((512, 1280), pattern, seed=2**64 - 2)
    assert not torch.equal(drawn[0].indices, fresh.indices)


def test_the_masks_of_a_seed_stay_those_of_today() -> None:
    # Written down: a change here changes every model that is drawn again from its seed.
    assert random_structure((8, 8), "2:4", 1).indices.tolist()[:8] == [1, 3, 4, 7, 1, 2, 6, 7]
    some = random_structure((4, 300), "99%", 1)
    assert some.indices.tolist() == [11, 94, 241, 99, 167, 179, 151, 162, 188, 203, 100, 27]
    assert some.indptr is not None
    assert some.indptr.tolist() == [0, 3, 6, 10, 11, 11, 12, 12, 12]


def test_manual_seed_repeats_a_layer() -> None:
    layers = []
    for _ in range(2):
        torch.manual_seed(3)
        layers.append(SparseLinear(300, 64, pattern="90%"))
    first, second = (layer.state_dict() for layer in layers)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_default_device_does_not_reach_the_draw() -> None:
    for pattern in ("block 4x4 50%", "2:4:g2", "50%"):
        with torch.device("meta"):
            drawn = random_structure((16, 16), pattern, 3)
        assert torch.equal(drawn.indices, random_structure((16, 16), pattern, 3).indices)


@pytest.mark.slow
@pytest.mark.process
def test_making_a_layer_takes_memory_for_its_entries_only() -> None:
    patterns = [
        "dense 2:4",
        "99%",
        "95%:v4",
        "block 16x16 98%",
        "block 1x2 98%",
        "1:32",
        "1:16:v4",
        "1:64:g1",
    ]
    command = [sys.executable, str(ROOT / "tests/support/memory_worker.py"), "4096", *patterns]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    rises = dict(zip(patterns, map(json.loads, done.stdout.splitlines()), strict=True))
    dense = 4 * 4096**2
    grown, _ = rises.pop("dense 2:4")
    assert grown > dense  # a dense matrix would be seen
    for pattern, (grown, final) in rises.items():
        assert grown <= 4 * final + 2**20, (pattern, grown, final)
        assert grown < dense // 4, (pattern, grown)  # not even a mask of bytes
