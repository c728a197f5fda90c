"""Diagnostics of a recipe's masks, with a state for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.backend import Layout, Structure, validate
from gossamer.recipes import Diagnostics


class Masks(Diagnostics):
    """Diagnostics of a recipe whose state (the masks of the last measurement) can be saved.

    Args:
        recipe: a recipe that is attached to a model.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the masks of the last measurement."""
        return {
            name: {
                "layout": mask.layout.as_ints(), "indices": mask.indices, "indptr": mask.indptr
            }
            for name, mask in self._before.items()
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the masks of the last measurement.

        Raises:
            StructureError: the masks are damaged; nothing changes.
        """
        masks = {
            name: Structure(Layout(*one["layout"]), one["indices"], one["indptr"])
            for name, one in state.items()
        }
        for mask in masks.values():
            validate(mask)
        self._before = masks
