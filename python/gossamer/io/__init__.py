"""Saving and loading whole models: safetensors with structure, patterns and what builds them again.

Nothing is pickled. A load checks everything before it changes anything.
"""

from gossamer.io.checking import check_state
from gossamer.io.loading import load
from gossamer.io.saving import save

__all__ = ["check_state", "load", "save"]
