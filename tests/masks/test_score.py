"""Sparsifiers against a slow oracle in plain Python: exact counts, one tie rule, clear errors."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gossamer.errors import (
    ArgumentError,
    DeviceError,
    DTypeError,
    PatternError,
    ShapeError,
    StructureError,
)
from gossamer.masks import (
    allocate,
    check_mask,
    magnitude_mask,
    mask_from_score,
    random_mask,
)
from gossamer.patterns import NM, Block, Unstructured, parse_pattern

INF = math.inf
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])


def oracle(score, pattern):
    """The mask, slot by slot: sort (-score, index) and keep the first ones."""
    rows, cols = len(score), len(score[0]) if score else 0
    if isinstance(pattern, Block):
        high, wide = pattern.rows, pattern.cols
    else:
        high, wide = pattern.vector, 1
    down, across = rows // high, cols // wide
    slots = {
        (i, j): sum(score[i * high + a][j * wide + b] for a in range(high) for b in range(wide))
        for i in range(down)
        for j in range(across)
    }
    if isinstance(pattern, NM):
        groups = [
            [(i, g + j) for j in range(pattern.m)]
            for i in range(down)
            for g in range(0, across, pattern.m)
        ]
        keep = pattern.n
    else:
        some = int(len(slots) > 0 and pattern.sparsity < 1)  # never rounded to nothing
        groups, keep = [list(slots)], max(round(len(slots) * (1 - pattern.sparsity)), some)
    kept = {slot for g in groups for slot in sorted(g, key=lambda s: (-slots[s], s))[:keep]}
    return [[(r // high, c // wide) in kept for c in range(cols)] for r in range(rows)]


@st.composite
def cases(draw, values):
    """A pattern and a matrix that fits it, its values drawn from few so that ties abound."""
    kind = draw(st.sampled_from(["nm", "unstructured", "block"]))
    if kind == "block":
        pattern = Block(draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(SHARES))
        high, wide = pattern.rows, pattern.cols
    else:
        high, wide = draw(st.sampled_from([1, 1, 4, 8, 16])), 1
        if kind == "nm":
            wide = draw(st.integers(1, 9))
            pattern = NM(draw(st.integers(1, wide)), wide, high)
        else:
            pattern = Unstructured(draw(SHARES), high)
    down, across = draw(st.integers(1, 4)), draw(st.integers(1, 5 if wide > 1 else 12))
    row = st.lists(values, min_size=across * wide, max_size=across * wide)
    score = draw(st.lists(row, min_size=down * high, max_size=down * high))
    return pattern, score


SMALL = st.integers(-3, 3).map(float)


@settings(max_examples=300)
@given(cases(SMALL), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
@pytest.mark.slow
def test_score_selection_is_the_oracle(case, dtype):
    pattern, score = case
    mask = mask_from_score(torch.tensor(score, dtype=dtype), pattern)
    assert mask.dtype == torch.bool
    assert mask.tolist() == oracle(score, pattern)
    assert int(mask.sum()) == pattern.count(len(score), len(score[0]))
    check_mask(mask, str(pattern))


@settings(max_examples=300)
@given(cases(SMALL))
@pytest.mark.slow
def test_magnitude_selection_is_the_oracle_of_magnitudes(case):
    pattern, weight = case
    mask = magnitude_mask(torch.tensor(weight), pattern)
    assert mask.tolist() == oracle([[abs(w) for w in row] for row in weight], pattern)


@settings(max_examples=200)
@given(cases(st.sampled_from([-INF, -1.0, 0.0, -0.0, 1.0, INF])))
def test_infinite_scores_rank_first_and_last(case):
    pattern, score = case
    high, wide = (pattern.rows, pattern.cols) if isinstance(pattern, Block) else (pattern.vector, 1)
    tiles = [
        {score[i + a][j + b] for a in range(high) for b in range(wide)}
        for i in range(0, len(score), high)
        for j in range(0, len(score[0]), wide)
    ]
    if any({INF, -INF} <= tile for tile in tiles):
        with pytest.raises(ArgumentError, match="inf and -inf"):
            mask_from_score(torch.tensor(score), pattern)
    else:
        assert mask_from_score(torch.tensor(score), pattern).tolist() == oracle(score, pattern)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("2:4", [0, 1, 4, 5]),
        ("62.5%", [0, 1, 2]),
        ("block 1x2 50%", [0, 1, 2, 3]),
    ],
)
def test_equal_scores_keep_the_lower_index(pattern, kept):
    mask = magnitude_mask(torch.full((1, 8), -0.5), pattern)
    assert mask[0].nonzero().flatten().tolist() == kept


def test_ties_are_row_major_across_rows():
    score = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 3.0]])
    expected = [[True, True, True], [False, False, True]]
    assert mask_from_score(score, Unstructured(1 / 3)).tolist() == expected


def test_zero_and_minus_zero_tie():
    assert mask_from_score(torch.tensor([[-0.0, 0.0]]), "1:2").tolist() == [[True, False]]


def test_a_panel_with_the_same_entries_in_another_order_ties():
    # In float32 the sums of these two columns differ by their order: 1e8 swallows the ones.
    column = [1e8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    score = torch.tensor([column[::-1], column]).t().contiguous()
    assert mask_from_score(score, "1:2:v8")[0].tolist() == [True, False]
    assert mask_from_score(score.flip(1), "1:2:v8")[0].tolist() == [True, False]


def test_user_scores_of_a_panel_are_summed_with_their_signs():
    score = torch.tensor([[5.0, 1.0], [-5.0, 1.0], [5.0, 1.0], [-5.0, 1.0]])
    assert mask_from_score(score, "1:2:v4")[0].tolist() == [False, True]
    assert magnitude_mask(score, "1:2:v4")[0].tolist() == [True, False]


@pytest.mark.parametrize("threads", [1, 2])
def test_large_selection_matches_a_stable_sort(threads):
    torch.set_num_threads(threads)
    score = torch.randn(512, 768).mul(8).round()
    order = score.flatten().argsort(descending=True, stable=True)
    pattern = Unstructured(0.9)
    expected = torch.zeros(score.numel(), dtype=torch.bool)
    expected[order[: pattern.count(512, 768)]] = True
    assert torch.equal(mask_from_score(score, pattern).flatten(), expected)
    groups = score.view(-1, 16).argsort(dim=1, descending=True, stable=True)[:, :5]
    expected = torch.zeros(512 * 768 // 16, 16, dtype=torch.bool).scatter_(1, groups, value=True)
    assert torch.equal(mask_from_score(score, "5:16").view(-1, 16), expected)


@pytest.mark.parametrize("pattern", ["2:4", "2:4:v4", "70%", "70%:v8", "block 4x2 50%"])
def test_strides_do_not_matter(pattern):
    base = torch.randn(48, 64)
    views = [base.t(), base[::2, ::2], base[::3].t()[::2], torch.randn(16).expand(8, 16)]
    for view in views:
        assert torch.equal(magnitude_mask(view, pattern), magnitude_mask(view.clone(), pattern))
        mask = magnitude_mask(view, pattern)
        check_mask(mask.t().contiguous().t(), pattern)


def test_bfloat16_sums_keep_what_bfloat16_would_lose():
    # 256 + 1 is 256 in bfloat16, so the columns would tie and the first would be kept.
    weight = torch.tensor([[256.0, 256.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert magnitude_mask(weight.bfloat16(), "1:2:v4")[0].tolist() == [False, True]


def test_a_weight_that_needs_gradients_is_left_alone():
    weight = torch.nn.Parameter(torch.randn(4, 8))
    before = weight.detach().clone()
    mask = magnitude_mask(weight, "2:4")
    assert not mask.requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0), (8, 8), (16, 24)])
@pytest.mark.parametrize(
    "pattern", ["2:4", "4:4", "1:8:v8", "0%", "100%", "50%:v4", "block 4x4 0%", "block 8x8 100%"]
)
def test_edges(shape, pattern):
    count = parse_pattern(pattern).count(*shape)
    masks = [magnitude_mask(torch.randn(shape), pattern), random_mask(shape, pattern)]
    for mask in masks:
        assert tuple(mask.shape) == shape
        assert int(mask.sum()) == count
        check_mask(mask, pattern)


def test_one_by_one():
    one = torch.ones(1, 1)
    assert magnitude_mask(one, "1:1").item() is True
    assert magnitude_mask(one, "0%").item() is True
    assert magnitude_mask(one, "100%").item() is False
    assert magnitude_mask(one, "50%").item() is True  # half an entry, and one stays
    assert magnitude_mask(one, Block(1, 1, 0.25)).item() is True


@given(cases(SMALL), st.integers(0, 2**64 - 1))
def test_random_masks_obey_the_pattern(case, seed):
    pattern, score = case
    mask = random_mask((len(score), len(score[0])), pattern, seed=seed)
    check_mask(mask, pattern)
    assert torch.equal(mask, random_mask((len(score), len(score[0])), pattern, seed=seed))


def test_random_masks_differ_by_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    masks = [random_mask((16, 64), "2:4", seed) for seed in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(random_mask((16, 64), "2:4", 1), masks[1])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


@pytest.mark.parametrize(
    ("pattern", "share"), [("2:4", 0.5), ("1:8:v4", 0.125), ("75%", 0.25), ("block 2x2 50%", 0.5)]
)
def test_random_masks_favour_no_column(pattern, share):
    kept = random_mask((8000, 8), pattern, seed=3).float().mean(dim=0)
    # Five standard deviations of a share over 1,000 independent slots or more.
    slots = 8000 / (4 if "v4" in pattern else 2 if "block" in pattern else 1)
    assert (kept - share).abs().max() < 5 * math.sqrt(share * (1 - share) / slots)


def test_check_mask_takes_a_users_mask():
    mask = torch.tensor([[True, False, False, True], [False, True, True, False]])
    check_mask(mask, "2:4")
    check_mask(mask, "50%")
    check_mask(torch.ones(4, 8, dtype=torch.bool), "4:4:v4")


def mask_of(*rows):
    return torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.bool)


V4 = ["1100"] * 4 + ["1010"] * 4


@pytest.mark.parametrize(
    ("mask", "pattern", "parts"),
    [
        (mask_of("11000111"), "2:4", ["keeps 3 of the 4", "columns from 4 of row 0", "exactly 2"]),
        (mask_of("1100", "1000"), "2:4", ["keeps 1", "from 0 of row 1", "mask_from_score"]),
        (mask_of(*V4[:6], "1001", V4[7]), "2:4:v4", ["[6, 2]", "[4, 2]", "differ", "4x1"]),
        (mask_of(*V4[:4], *["1110"] * 4), "2:4:v4", ["keeps 3", "of row 4", "2:4:v4"]),
        (mask_of("1110"), "50%", ["keeps 3 of 4", "exactly 2", "sparsity=0.25"]),
        (mask_of(*["1000"] * 4), "50%:v4", ["keeps 4 of 16", "exactly 8", "sparsity=0.75"]),
        (mask_of("1100", "1000"), "block 2x2 50%", ["[1, 1]", "[0, 0]", "differ", "2x2"]),
        (mask_of("1111", "1111"), "block 2x2 50%", ["keeps 8 of 8", "exactly 4", "sparsity=0.0"]),
    ],
)
def test_masks_that_break_the_pattern(mask, pattern, parts):
    with pytest.raises(StructureError) as caught:
        check_mask(mask, pattern)
    for part in parts:
        assert part in str(caught.value)


@settings(max_examples=300)
@given(cases(SMALL), st.data())
@pytest.mark.slow
def test_one_flipped_entry_breaks_any_mask(case, data):
    pattern, score = case
    mask = mask_from_score(torch.tensor(score), pattern)
    row = data.draw(st.integers(0, mask.shape[0] - 1))
    col = data.draw(st.integers(0, mask.shape[1] - 1))
    mask[row, col] = ~mask[row, col]
    with pytest.raises(StructureError):
        check_mask(mask, pattern)


SHAPES = {"in": (3072, 768), "out": (768, 3072), "head": (10, 768), "tiny": (4, 4)}


def kept_share(shapes, sparsity):
    total = sum(rows * cols for rows, cols in shapes.values())
    return sum((1 - sparsity[name]) * r * c for name, (r, c) in shapes.items()) / total


def test_uniform_gives_every_layer_the_same():
    assert allocate(SHAPES, 0.9) == dict.fromkeys(SHAPES, 0.9)
    assert allocate({}, 0.9) == allocate({}, 0.9, "erk") == {}


@given(
    st.dictionaries(
        st.text(max_size=3), st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=8
    ),
    st.floats(0, 1),
)
@pytest.mark.slow
def test_erk_meets_the_budget_with_one_eps(shapes, sparsity):
    layers = allocate(shapes, sparsity, "erk")
    assert list(layers) == list(shapes)
    assert all(0.0 <= s <= 1.0 for s in layers.values())
    filled = {name: shape for name, shape in shapes.items() if math.prod(shape)}
    assume(filled)
    assert kept_share(filled, layers) == pytest.approx(1 - sparsity, abs=1e-12)
    # The formula: below 1, density * product / sum is one number, and dense layers ask for more.
    eps = {n: (1 - layers[n]) * math.prod(s) / sum(s) for n, s in filled.items()}
    open_eps = [eps[n] for n in filled if layers[n] > 1e-9]
    if open_eps:
        assert max(open_eps) == pytest.approx(min(open_eps), rel=1e-6, abs=1e-9)
        assert all(eps[n] <= max(open_eps) * (1 + 1e-6) for n in filled if layers[n] <= 1e-9)


def test_erk_makes_small_layers_dense_and_solves_again():
    layers = allocate(SHAPES, 0.9, "erk")
    assert layers["tiny"] == 0.0
    assert layers["head"] == 0.0
    assert layers["in"] == layers["out"]
    dense = 10 * 768 + 4 * 4
    total = 2 * 3072 * 768 + dense
    assert 1 - layers["in"] == pytest.approx((0.1 * total - dense) / (2 * 3072 * 768), rel=1e-12)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_allocation_at_the_ends(distribution, sparsity):
    assert allocate(SHAPES, sparsity, distribution) == dict.fromkeys(SHAPES, sparsity)


def clashing():
    score = torch.zeros(8, 4)
    score[4, 2], score[7, 2] = INF, -INF
    return score


ANY = torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: mask_from_score(clashing(), "2:4:v4"), ArgumentError, ["inf and -inf", "[4, 2]"]),
        (lambda: magnitude_mask([[1.0]], "1:1"), DTypeError, ["list", "torch tensor", "as_tensor"]),
        (
            lambda: magnitude_mask(ANY.int(), "2:4"),
            DTypeError,
            ["int32", ".to(torch.float32)"],
        ),
        (lambda: magnitude_mask(ANY.cfloat(), "2:4"), DTypeError, ["complex64", "convert"]),
        (lambda: mask_from_score(ANY > 0, "2:4"), DTypeError, ["score has dtype torch.bool"]),
        (lambda: magnitude_mask(ANY.to_sparse(), "2:4"), DTypeError, ["sparse_coo", "to_dense"]),
        (lambda: magnitude_mask(ANY[0], "2:4"), ShapeError, ["[8]", "2 dimensions", "[None]"]),
        (lambda: magnitude_mask(ANY[None], "2:4"), ShapeError, ["[1, 4, 8]", "2 dim", "flatten"]),
        (lambda: magnitude_mask(ANY.to("meta"), "2:4"), DeviceError, ["meta", "random_mask"]),
        (lambda: magnitude_mask(ANY, "2:5"), PatternError, ["in_features=8", "multiple of 5"]),
        (lambda: magnitude_mask(ANY[:3], "2:4:v4"), PatternError, ["out_features=3", "pad to 4"]),
        (lambda: magnitude_mask(ANY, "half"), PatternError, ["'half'", "block 16x16 75%"]),
        (lambda: magnitude_mask(ANY, 0.5), DTypeError, ["0.5", "float"]),
        (lambda: random_mask((4, 6), "2:4"), PatternError, ["random_mask", "in_features=6"]),
        (lambda: random_mask((4,), "2:4"), ShapeError, ["[4]", "two sizes"]),
        (lambda: random_mask((4, 8, 2), "2:4"), ShapeError, ["[4, 8, 2]", "two sizes"]),
        (lambda: random_mask((-4, 8), "2:4"), ShapeError, ["[-4, 8]", "negative"]),
        (lambda: random_mask((2**40, 2**40), "2:4"), ShapeError, ["2**48", "check the sizes"]),
        (lambda: random_mask(4, "2:4"), DTypeError, ["shape=4", "(rows, cols)"]),
        (lambda: random_mask("48", "2:4"), DTypeError, ["shape='48'", "(rows, cols)"]),
        (lambda: random_mask((4.0, 8), "2:4"), DTypeError, ["rows=4.0", "integer"]),
        (lambda: random_mask((4, 8), "2:4", "x"), DTypeError, ["seed='x'", "integer"]),
        (lambda: random_mask((4, 8), "2:4", 1.0), DTypeError, ["seed=1.0", "integer"]),
        (lambda: random_mask((4, 8), "2:4", -1), ArgumentError, ["seed=-1", "0 <= seed"]),
        (lambda: random_mask((4, 8), "2:4", 2**64), ArgumentError, ["seed=1844", "< 2**64"]),
        (lambda: check_mask(ANY, "2:4"), DTypeError, ["torch.float32", ".to(torch.bool)"]),
        (lambda: check_mask(None, "2:4"), DTypeError, ["NoneType", "torch tensor"]),
        (lambda: check_mask(ANY[0] > 0, "2:4"), ShapeError, ["[8]", "2 dimensions"]),
        (lambda: check_mask(ANY > 0, "2:5"), PatternError, ["check_mask", "multiple of 5"]),
        (lambda: allocate(SHAPES, 1.1), PatternError, ["allocate got sparsity=1.1", "[0, 1]"]),
        (lambda: allocate(SHAPES, "90%"), DTypeError, ["'90%'", "number"]),
        (lambda: allocate(SHAPES, 0.9, "er"), ArgumentError, ["'er'", '"uniform" or "erk"']),
        (lambda: allocate({"a": (1, 2, 3)}, 0.9), ShapeError, ["'a'", "[1, 2, 3]", "two sizes"]),
        (lambda: allocate({"a": (1, -2)}, 0.9), ShapeError, ["'a'", "[1, -2]", "negative"]),
    ],
)
def test_bad_arguments(call, error, parts):
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), f"{part!r} is missing in: {caught.value}"
