"""Every recipe moves, prunes and grows 32 rows that share their columns as one."""

import copy
import pickle

import pytest
import torch

from gossamer.errors import PatternError
from gossamer.masks import check_mask, check_structure
from gossamer.nn import MaskedLinear
from gossamer.nn.layers.threshold import ThresholdLinear
from gossamer.recipes.base.registry import ANYWHERE, RECIPES, make
from support.recipe_course import STEPS, Course, bits, mask_of, parts_of

# They need single entries: transposed or sampled masks are those of one entry at a time.
SINGLE = {"fst", "fst-sparse", "sste", "bimask"}
TAKING = [name for name in RECIPES if name not in SINGLE]
QUICK = ("set", "rigl", "gmp", "ste", "slope")


def lanes(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def pattern_of(name: str) -> str:
    return "75%:v32" if RECIPES[name].patterns is ANYWHERE else "1:4:v32"


def obeys(course: Course) -> bool:
    """Whether all rows of a unit agree in every layer."""
    for part in parts_of(course.model).values():
        masked = isinstance(part, MaskedLinear)
        holder = part if masked else part.weight
        mask = mask_of(part)
        check_mask(mask, holder.pattern)
        check_structure(holder.structure, holder.pattern)
        if isinstance(part, ThresholdLinear) and not part.projected:
            continue  # unstructured by design until the projection
        assert holder.pattern.tile == (32, 1)
        units = mask.view(-1, 32, mask.shape[1])
        if not torch.equal(units.all(1), units.any(1)):
            return False
    return True


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", lanes(TAKING))
def test_units_of_32_rows_hold_at_every_step_and_resume(name: str) -> None:
    # A strong decay of SR-STE, once Adam has normalised it, leaves no pruned unit a way back.
    options = {"gradient_decay": 2e-3} if name == "srste" else {}
    course = Course(name, pattern=pattern_of(name), **options)
    masks = {key: mask_of(part) for key, part in parts_of(course.model).items()}
    moved = False
    saved = None
    for t in range(STEPS):
        if t == STEPS // 2:
            saved = copy.deepcopy(course.state())
        course.step(t)
        assert obeys(course)
        now = {key: mask_of(part) for key, part in parts_of(course.model).items()}
        moved |= any(not torch.equal(masks[k], now[k]) for k in masks.keys() & now.keys())
    assert moved or RECIPES[name].static or name.startswith("sparse-ift")
    again = Course(name, seed=7, pattern=pattern_of(name), **options)
    again.load(pickle.loads(pickle.dumps(saved)))  # noqa: S301
    again.run(STEPS // 2)
    assert bits(again.state()) == bits(course.state())


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_those_that_need_single_entries_say_so(name: str) -> None:
    with pytest.raises(PatternError, match="without a vector such as :v4"):
        make(name, "1:4:v32")
