"""Diagnostics of a recipe's masks that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.backend import Layout, Structure, validate
from gossamer.recipes import Diagnostics


class Masks(Diagnostics):
    """Diagnostics of a recipe in training, which a checkpoint keeps: flips since the last look.

    Args:
        recipe: attached.
    """

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last look."""
        return {
            name: {
                "layout": mask.layout.as_ints(), "indices": mask.indices, "indptr": mask.indptr
            }
            for name, mask in self._before.items()
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the masks of the last look.

        Raises:
            StructureError: they are damaged; nothing changed.
        """
        masks = {
            name: Structure(Layout(*one["layout"]), one["indices"], one["indptr"])
            for name, one in state.items()
        }
        for mask in masks.values():
            validate(mask)
        self._before = masks
