"""Arguments are checked by their annotations: one rule for all functions."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.arguments import Count, NotNegative, Positive, Range, Share, Steps, check
from gossamer.errors import ArgumentError, DTypeError, PenaltyError

Small = Annotated[int, Range(lambda v: v < 5, "below 5")]


def function(
    number: float = 1.0,
    count: Count = 1,
    steps: Steps = 1,
    share: Share = 0.5,
    positive: Positive = 1.0,
    least: NotNegative = 0.0,
    small: Small | None = None,
    flag: bool = False,
    text: str = "",
    choice: Literal["a", "b"] | None = "a",
    model: nn.Module | None = None,
    dtype: torch.dtype | None = None,
    call: Callable[[], None] | None = None,
    many: Sequence[int] = (),
    each: Iterable[Any] = (),
    table: Mapping[str, float] | None = None,
    pair: tuple[float, Share] = (0.0, 0.0),
    anything: Any = None,
) -> None:
    check(function, locals())


VALID: list[dict[str, Any]] = [
    {"number": 1}, {"number": np.float32(1.5)}, {"number": math.inf}, {"number": np.int8(1)},
    {"count": np.int64(3)}, {"steps": 1_000_000}, {"share": 1}, {"positive": 1e-300},
    {"small": 4}, {"small": None}, {"flag": True}, {"flag": np.bool_(True)}, {"choice": None},
    {"model": nn.Linear(2, 2)}, {"dtype": torch.float32}, {"call": print}, {"many": [1, 2]},
    {"many": range(3)}, {"many": np.array([1, 2])}, {"each": iter([1])}, {"each": {}},
    {"table": {"a": 1}}, {"pair": [1, 0.5]}, {"anything": object()},
]  # fmt: skip

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"number": math.nan}, ArgumentError, "number=nan; a number that is not NaN"),
    ({"number": "1"}, DTypeError, "number='1'; a number is needed"),
    ({"number": True}, DTypeError, "a number"),
    ({"number": 1j}, DTypeError, "a number"),
    ({"number": torch.ones(2)}, DTypeError, r"number=a Tensor of shape \[2\]"),
    ({"count": 0}, ArgumentError, "count=0; it must be at least 1"),
    ({"count": 1.0}, DTypeError, "an integer"),
    ({"count": True}, DTypeError, "an integer"),
    ({"count": -(10**5000)}, ArgumentError, "thousands of digits"),
    ({"steps": 2**63 - 1}, ArgumentError, "at most 1000000"),
    ({"share": 1.5}, ArgumentError, r"in \[0, 1\]"),
    ({"positive": math.inf}, ArgumentError, "finite"),
    ({"positive": 10**400}, ArgumentError, "finite"),
    ({"least": -1e-300}, ArgumentError, ">= 0"),
    ({"small": 5}, ArgumentError, "below 5"),
    ({"small": "x"}, DTypeError, "an integer or None"),
    ({"flag": "no"}, DTypeError, "flag='no'; a bool is needed"),
    ({"flag": 1}, DTypeError, "a bool"),
    ({"text": None}, DTypeError, "a text"),
    ({"choice": "c"}, ArgumentError, "choose 'a' or 'b'"),
    ({"choice": 3}, DTypeError, "'a' or 'b' or None is needed"),
    ({"model": nn.Linear}, DTypeError, "the class Linear; a Module or None"),
    ({"dtype": ""}, DTypeError, "a dtype or None"),
    ({"call": 3}, DTypeError, "a function or None"),
    ({"many": "12"}, DTypeError, "each an integer"),
    ({"many": [1, "a"]}, DTypeError, r"many\[1\]='a'; an integer is needed"),
    ({"many": 5}, DTypeError, "each an integer"),
    ({"each": 5}, DTypeError, "each"),
    ({"table": {"a": "b"}}, DTypeError, r"table\['a'\]='b'; a number"),
    ({"table": {1: 1.0}}, DTypeError, "table, key=1; a text"),
    ({"pair": (1.0,)}, DTypeError, "2 entries"),
    ({"pair": (1.0, 2.0)}, ArgumentError, r"pair\[1\]=2.0; it must be in"),
]  # fmt: skip


# Not the texts: that of an object has its address, which differs between processes.
@pytest.mark.parametrize("given", VALID, ids=lambda given: "-".join(given))
def test_what_the_annotation_says_passes(given: dict[str, Any]) -> None:
    function(**given)


@pytest.mark.parametrize(("given", "error", "words"), REFUSED, ids=[str(r[2]) for r in REFUSED])
def test_what_it_does_not_say_is_refused(
    given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as found:
        function(**given)
    assert type(found.value) is error
    assert str(found.value).startswith("function got ")


def test_a_class_is_named_and_the_error_class_can_be_chosen() -> None:
    class Thing:
        def __init__(self, size: Count) -> None:
            check(Thing.__init__, locals(), PenaltyError)

    with pytest.raises(PenaltyError, match=r"^Thing got size=0"):
        Thing(0)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Thing()  # type: ignore[call-arg]
