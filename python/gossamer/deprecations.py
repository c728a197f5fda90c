"""What will be removed: one way to say it, with the version that removes it.

A test reads every call of `deprecated` and fails when that version is reached, so that nothing
stays for longer than it was promised.
"""

from __future__ import annotations

import warnings

from gossamer.errors import GossamerDeprecationWarning

__all__ = ["deprecated"]


def deprecated(old: str, new: str, *, removed: str, stacklevel: int = 2) -> None:
    """Warn that something is still taken, and until when.

    Args:
        old: what was used, as the user wrote it.
        new: what to use instead.
        removed: the version that no longer takes it, as `"0.3"`.
        stacklevel: as that of `warnings.warn`, seen from the caller; 2 is the caller's caller.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     deprecated("prune(keep=0.5)", "prune(sparsity=0.5)", removed="9.0")
        >>> print(caught[0].message)
        prune(keep=0.5) is deprecated and goes with gossamer 9.0: use prune(sparsity=0.5)
    """
    warnings.warn(
        f"{old} is deprecated and goes with gossamer {removed}: use {new}",
        GossamerDeprecationWarning,
        stacklevel=stacklevel + 1,
    )
