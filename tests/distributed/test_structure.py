"""Masks of several processes: compared, refused by name, and made the same."""

import pytest

from support import ranks, ranks_cases

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def found() -> list[dict[str, str]]:
    return ranks.run(2, ranks_cases.different_masks)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("second layer", "StructureError: the masks of the processes differ: '2.weight' is"),
        ("sharded", "StructureError: the masks of the processes differ: '2.weight' is"),
        ("patterns", "StructureError: broadcast_structure: '0.weight' on rank 1"),
        ("attach", "StructureError: the masks of the processes differ: '0.weight' is"),
        ("step 1", "StructureError: the masks of the processes differ:"),
        ("overwritten", "StructureError: the mask of '0.weight' was written over on rank 1"),
    ],
)
def test_masks_that_differ_are_refused_everywhere(
    case: str, text: str, found: list[dict[str, str]]
) -> None:
    for one in found:
        assert one[case].startswith(text), one[case]
        if case != "patterns":
            assert "broadcast_structure(model)" in one[case]


def test_masks_that_agree_pass(found: list[dict[str, str]]) -> None:
    for one in found:
        assert one["same"] == "passed"
        assert one["detached"] == "{}"
        assert one["step 0"] == one["mended"] == "nothing was raised"
        assert one["loss"] == "True"
