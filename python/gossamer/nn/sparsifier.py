"""Sparsifier: a module that keeps the largest activations, and the largest of their gradients."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.ops.sparsified import Given, sparsify_by_texts, text_of


class Sparsifier(nn.Module):
    """Keeps what one pattern allows of its input, and another one of the gradient.

    See `gossamer.ops.sparsify_tensor`. It has no state.

    Args:
        forward: pattern of the activations, or its text; None keeps all.
        backward: pattern of the gradients, or its text; None keeps all.
        straight_through: whether entries that `forward` drops have a gradient too.
        dim: the dimension along which a pattern has its columns: -1 for features.

    Raises:
        PatternError: an unknown pattern.

    Example:
        >>> import torch
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 8), Sparsifier("2:4", backward="1:4"))
        >>> int((layers(torch.randn(3, 4)) != 0).sum())
        12
    """

    def __init__(
        self,
        forward: Given = None,
        backward: Given = None,
        straight_through: bool = True,
        dim: int = -1,
    ) -> None:
        super().__init__()
        check(Sparsifier.__init__, locals())
        self.patterns = text_of(forward, "Sparsifier"), text_of(backward, "Sparsifier")
        self.straight_through, self.dim = straight_through, dim

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch has
        """Return the kept entries, zeros elsewhere."""
        return sparsify_by_texts(input, *self.patterns, self.straight_through, self.dim)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        forward, backward = self.patterns
        return (
            f"forward={forward}, backward={backward}, "
            f"straight_through={self.straight_through}, dim={self.dim}"
        )


__all__ = ["Sparsifier"]
