"""Patterns: values, text forms, counts, and errors that say what to do."""

import math
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gossamer.errors import DTypeError, GossamerError, PatternError, ShapeError
from gossamer.patterns import NM, Block, GroupedNM, Nonzeros, Unstructured, parse_pattern

VECTORS = st.sampled_from([1, 4, 8, 16, 32, 64, 128])
SPARSITIES = st.floats(0.0, 1.0)
GROUPS = st.integers(1, 64).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))
PATTERNS = st.one_of(
    st.builds(lambda group, v: NM(*group, v), GROUPS, VECTORS),
    st.builds(Unstructured, SPARSITIES, VECTORS),
    st.builds(Block, st.integers(1, 40), st.integers(1, 40), SPARSITIES),
)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", NM(2, 4)),
        ("2:4:v4", NM(2, 4, vector=4)),
        ("1:16:v8", NM(1, 16, vector=8)),
        ("2:4:v32", NM(2, 4, vector=32)),
        ("64:64", NM(64, 64)),
        ("90%", Unstructured(0.9)),
        ("97.5%", Unstructured(0.975)),
        ("90%:v4", Unstructured(0.9, vector=4)),
        ("90%:v128", Unstructured(0.9, vector=128)),
        ("7%", Unstructured(0.07)),
        ("0%", Unstructured(0.0)),
        ("100%", Unstructured(1.0)),
        ("block 16x16 75%", Block(16, 16, 0.75)),
        ("block 1x8 99.9%", Block(1, 8, 0.999)),
    ],
)
def test_text_forms(text, pattern):
    assert parse_pattern(text) == pattern
    assert str(pattern) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" 2:4 ", "2:4"),
        ("2 : 4 : V4", "2:4:v4"),
        ("2:4:v1", "2:4"),
        ("90.0 %", "90%"),
        (".5%", "0.5%"),
        ("5.%", "5%"),
        ("-0%", "0%"),
        ("Block 16 x 8 50%", "block 16x8 50%"),
        ("block16x8 50%", "block 16x8 50%"),
    ],
)
def test_loose_text_is_read_and_written_in_one_way(text, canonical):
    assert str(parse_pattern(text)) == canonical


@given(PATTERNS)
@example(Unstructured(5e-324))
@example(Unstructured(math.nextafter(1.0, 0.0)))
def test_text_round_trips(pattern):
    assert parse_pattern(str(pattern)) == pattern
    assert parse_pattern(pattern) is pattern


@given(PATTERNS)
def test_density_and_sparsity_add_up(pattern):
    assert 0.0 <= pattern.density <= 1.0
    assert pattern.density + pattern.sparsity == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("pattern", "tile", "panel"),
    [
        (NM(2, 4), (1, 1), 1),
        (NM(2, 4, 8), (8, 1), 8),
        (NM(2, 4, 16), (16, 1), 8),
        (GroupedNM(2, 4, 2), (1, 1), 1),
        (Unstructured(0.9, 4), (4, 1), 4),
        (Unstructured(0.9, 128), (128, 1), 8),
        (Nonzeros(32), (32, 1), 8),
        (Block(16, 3, 0.5), (16, 3), 8),
        (Block(128, 1, 0.5), (128, 1), 8),
        (Block(8, 1, 0.5), (8, 1), 8),
        (Block(12, 3, 0.5), (12, 3), 4),
        (Block(6, 16, 0.5), (6, 16), 1),
        (Block(1, 16, 0.5), (1, 16), 1),
    ],
)
def test_tile_and_panel(pattern, tile, panel):
    assert pattern.tile == tile
    assert pattern.panel == panel


@given(
    PATTERNS, st.integers(0, 9), st.integers(0, 9), st.integers(1, 8).map(lambda rows: rows * 128)
)
def test_count_is_the_formula(pattern, down, across, rows):
    match pattern:
        case NM(n, m):
            cols = across * m
            assert pattern.count(rows, cols) == Fraction(rows * cols * n, m)
        case Unstructured(_, v):
            slots = Decimal(rows * across // v * pattern.density)  # the float product, exactly
            kept = int(slots.to_integral_value("ROUND_HALF_EVEN"))
            assert pattern.count(rows, across) == v * max(
                kept, int(across > 0 and pattern.density > 0)
            )
        case Block(r, c):
            kept = Decimal(down * across * pattern.density)
            kept = int(kept.to_integral_value("ROUND_HALF_EVEN"))
            some = int(down * across > 0 and pattern.density > 0)  # never rounded to nothing
            assert pattern.count(down * r, across * c) == max(kept, some) * r * c


@pytest.mark.parametrize(
    ("pattern", "shape", "count"),
    [
        (Unstructured(0.5), (1, 5), 2),  # 2.5 goes to the even 2
        (Unstructured(0.5), (1, 7), 4),  # 3.5 goes to the even 4
        (Unstructured(0.0), (3, 5), 15),
        (Unstructured(1.0), (3, 5), 0),
        (Unstructured(0.75, 4), (8, 3), 8),  # 6 slots of 4: 1.5 goes to 2
        (Unstructured(0.9), (0, 7), 0),
        (Block(2, 2, 0.5), (2, 10), 8),
        (Block(2, 2, 1.0), (2, 10), 0),
        (NM(3, 3), (5, 6), 30),
        (NM(1, 1), (1, 1), 1),
        (NM(2, 4, 4), (0, 8), 0),
    ],
)
def test_count_at_the_edges(pattern, shape, count):
    assert pattern.count(*shape) == count


def test_count_of_a_shape_that_does_not_fit_is_an_error():
    with pytest.raises(PatternError, match="multiple of 4"):
        NM(2, 4).count(4, 6)


def test_patterns_are_values():
    assert NM(2, 4) == NM(2, 4, 1)
    assert NM(2, 4) != NM(2, 4, 4)
    assert len({NM(2, 4), NM(2, 4), Unstructured(0.5), Unstructured(0.5, 4)}) == 3
    assert pickle.loads(pickle.dumps(Block(4, 4, 0.5))) == Block(4, 4, 0.5)  # noqa: S301
    with pytest.raises(AttributeError):
        NM(2, 4).n = 3


def test_numpy_numbers_become_plain_ones():
    pattern = NM(np.int64(2), np.int8(4), np.int32(4))
    assert [type(number) for number in (pattern.n, pattern.m, pattern.vector)] == [int] * 3
    assert type(Unstructured(np.float32(0.5)).sparsity) is float
    assert type(Unstructured(1).sparsity) is float
    assert str(Unstructured(-0.0)) == "0%"


def says(error, *parts):
    message = str(error.value)
    for part in parts:
        assert part in message, f"{part!r} is missing in: {message}"


@pytest.mark.parametrize(
    ("build", "error", "parts"),
    [
        (lambda: NM(5, 4), PatternError, ["n=5, m=4", "1 <= n <= m <= 64", "NM(2, 4)"]),
        (lambda: NM(0, 4), PatternError, ["n=0", "1 <= n"]),
        (lambda: NM(-1, 4), PatternError, ["n=-1", "1 <= n"]),
        (lambda: NM(2, 65), PatternError, ["m=65", "<= 64"]),
        (lambda: NM(1, 0), PatternError, ["m=0", "n <= m"]),
        (lambda: NM(2, 4, 3), PatternError, ["vector=3", "1, 4, 8, 16, 32, 64 or 128", "choose"]),
        (lambda: NM(2, 4, 0), PatternError, ["vector=0", "1, 4, 8, 16, 32, 64 or 128"]),
        (lambda: NM(2.0, 4), DTypeError, ["n=2.0", "integer", "pass"]),
        (lambda: NM(2, "4"), DTypeError, ["m='4'", "integer"]),
        (lambda: NM(True, 4), DTypeError, ["n=True", "integer"]),
        (lambda: NM(2, 4, None), DTypeError, ["vector=None", "integer"]),
        (lambda: Unstructured(1.5), PatternError, ["sparsity=1.5", "[0, 1]", "0.9"]),
        (lambda: Unstructured(90), PatternError, ["sparsity=90", "[0, 1]"]),
        (lambda: Unstructured(10**400), PatternError, ["[0, 1]"]),
        (lambda: Unstructured(-1e-9), PatternError, ["sparsity=-1e-09", "[0, 1]"]),
        (lambda: Unstructured(math.nan), PatternError, ["sparsity=nan", "[0, 1]"]),
        (lambda: Unstructured(math.inf), PatternError, ["sparsity=inf", "[0, 1]"]),
        (lambda: Unstructured("90%"), DTypeError, ["sparsity='90%'", "number", "0.9"]),
        (lambda: Unstructured(True), DTypeError, ["sparsity=True", "number"]),
        (lambda: Unstructured(0.9, 2), PatternError, ["vector=2", "1, 4, 8, 16, 32, 64 or 128"]),
        (lambda: Block(0, 4, 0.5), PatternError, ["rows=0", "at least 1", "Block(16, 16, 0.75)"]),
        (lambda: Block(4, -4, 0.5), PatternError, ["cols=-4", "at least 1"]),
        (lambda: Block(4.5, 4, 0.5), DTypeError, ["rows=4.5", "integer"]),
        (lambda: Block(4, 4, 2), PatternError, ["Block got sparsity=2", "[0, 1]"]),
        (lambda: parse_pattern(5), DTypeError, ["5", "int", "2:4:v4"]),
        (lambda: parse_pattern(None), DTypeError, ["None", "NoneType", "90%"]),
    ],
)
def test_bad_arguments(build, error, parts):
    with pytest.raises(error) as caught:
        build()
    says(caught, *parts)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "2",
            "2:",
            ":4",
            "2:4:",
            "2:4:4",
            "2:4:v",
            "2:4v4",
            "2:4:8",
            "2.0:4",
            "2/4",
            "two:four",
        ),
        *("90", "0.9", "%", "90%%", "9e1%", "nan%", ".%", "90%:4", "90%:v4:v4", "1,5%", "2:4 90%"),
        *("block", "block 16 75%", "block 16x16", "block 16x16 75", "16x16 75%", "block -1x4 5%"),
        *("٢:٤", "2:4\n2:4", "9" * 5000 + ":4", "dense", "csr"),
    ],
)
def test_unknown_text_lists_the_forms(text):
    with pytest.raises(PatternError) as caught:
        parse_pattern(text)
    says(caught, repr(text)[:80], '"2:4"', '"2:4:v4"', '"90%"', '"90%:v4"', '"block 16x16 75%"')


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("5:4", "n=5, m=4"),
        ("-1:4", "n=-1"),
        ("2:128", "<= 64"),
        ("2:4:v3", "vector=3"),
        ("101%", "sparsity=1.01"),
        ("-5%", "sparsity=-0.05"),
        ("90%:v12", "vector=12"),
        ("2:4:v256", "vector=256"),
        ("block 0x4 50%", "rows=0"),
        ("block 4x4 150%", "sparsity=1.5"),
    ],
)
def test_text_with_a_number_out_of_range_names_both(text, part):
    with pytest.raises(PatternError) as caught:
        parse_pattern(text)
    says(caught, repr(text), part)


@pytest.mark.parametrize(
    ("pattern", "shape", "parts"),
    [
        ("2:8", (8, 100), ["in_features=100", "2:8", "multiple of 8", "choose 1:4", "pad to 104"]),
        ("2:4", (8, 7), ["in_features=7", "choose 50%", "pad to 8", "exclude=..."]),
        ("4:6:v8", (12, 9), ["multiple of 6", "choose 2:3:v4", "pad to 12"]),
        ("2:4:v4", (10, 8), ["out_features=10", "multiple of 4", "choose 2:4,", "pad to 12"]),
        ("1:3:v8", (12, 6), ["out_features=12", "multiple of 8", "choose 1:3:v4", "pad to 16"]),
        ("2:4:v64", (96, 8), ["out_features=96", "multiple of 64", "choose 2:4:v32", "pad to 128"]),
        ("90%:v8", (3, 5), ["out_features=3", "90%:v8", "choose 90%,", "pad to 8", "exclude"]),
        ("block 16x16 75%", (32, 24), ["in_features=24", "choose block 16x8 75%", "pad to 32"]),
        ("block 16x4 75%", (40, 24), ["out_features=40", "choose block 8x4 75%", "pad to 48"]),
    ],
)
def test_shapes_that_do_not_fit(pattern, shape, parts):
    with pytest.raises(PatternError) as caught:
        parse_pattern(pattern).check_shape(*shape, who="fc1")
    says(caught, "fc1 got", *parts)


@given(PATTERNS, st.integers(0, 300), st.integers(0, 300))
def test_the_pattern_that_an_error_suggests_fits(pattern, rows, cols):
    try:
        pattern.check_shape(rows, cols)
    except PatternError as error:
        suggestion = str(error).split("choose ")[1].split(", pad")[0]
        parse_pattern(suggestion).check_shape(rows, cols)
        assert parse_pattern(suggestion).density == pytest.approx(pattern.density, abs=1e-4)
    else:
        assert 0 <= pattern.count(rows, cols) <= rows * cols


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5), Block(2, 2, 0.5)])
@pytest.mark.parametrize(
    ("shape", "error", "part"),
    [
        ((-4, 8), ShapeError, "[-4, 8]"),
        ((4, -8), ShapeError, "[4, -8]"),
        ((4.0, 8), DTypeError, "rows=4.0"),
        ((4, "8"), DTypeError, "cols='8'"),
    ],
)
def test_sizes_that_are_none(pattern, shape, error, part):
    for call in (pattern.check_shape, pattern.count):
        with pytest.raises(error) as caught:
            call(*shape)
        says(caught, "weight got", part)


def test_errors_are_also_the_built_in_ones():
    for error, built_in in [
        (PatternError, ValueError),
        (ShapeError, ValueError),
        (DTypeError, TypeError),
    ]:
        assert issubclass(error, built_in)
        assert issubclass(error, GossamerError)
