"""Sharpness by the trajectory of the outputs: a penalty on what a sample's logits have lost since.

Neither needs another pass: the difference of the outputs to those of earlier weights stands for the
sharpness between these weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.arguments import Count, NotNegative, Positive, check
from gossamer.errors import ShapeError

NEVER = torch.iinfo(torch.int64).min


def trajectory_loss(past: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(past / T) || softmax(logits / T)), the mean over rows.

    Args:
        past: logits [..., classes] of earlier weights; detached.
        logits: logits [..., classes] of the present weights.
        temperature: T.
    """
    target = F.log_softmax(past.detach() / temperature, dim=-1)
    found = F.log_softmax(logits / temperature, dim=-1)
    rows = (target.exp() * (target - found)).sum(-1)
    return temperature**2 * rows.mean()


class SAF(nn.Module):
    """Sharpness-aware training for free: the loss's change since some epochs ago, by the logits.

    Add `saf(logits, indices, epoch)` to the loss. The logits of the last epochs are kept for every
    sample, in buffers that a checkpoint has.

    Args:
        samples: size of the data set.
        classes: number of logits.
        epochs: how many epochs ago the past is.
        weight: factor of the penalty.
        temperature: of both distributions.
        start: first epoch with a penalty.
        end: epoch from which on there is none; None has none.

    Raises:
        ArgumentError: a number out of range.

    Reference:
        Du et al. 2022, "Sharpness-Aware Training for Free", SAF.

    Example:
        >>> saf = SAF(samples=10, classes=3, epochs=1, start=1)
        >>> logits, indices = torch.randn(4, 3), torch.arange(4)
        >>> [saf(logits, indices, epoch).item() for epoch in range(2)]
        [0.0, 0.0]
    """

    past: Tensor
    epoch_of: Tensor

    def __init__(
        self,
        samples: Count,
        classes: Count,
        epochs: Count = 3,
        weight: NotNegative = 0.3,
        temperature: Positive = 5.0,
        start: int = 5,
        end: int | None = None,
    ) -> None:
        super().__init__()
        check(SAF.__init__, locals())
        self.epochs, self.weight, self.temperature = epochs, weight, temperature
        self.start, self.end = start, end
        self.register_buffer("past", torch.zeros(samples, epochs + 1, classes))
        # The epoch whose logits a place holds.
        self.register_buffer("epoch_of", torch.full((samples, epochs + 1), NEVER))

    def forward(self, logits: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Remember the logits, and return the penalty, 0-d.

        Samples that were not seen `epochs` epochs ago have none.

        Args:
            logits: [batch, classes].
            indices: which sample each row is, int64 [batch]; the loader must give them.
            epoch: the present epoch, from 0.

        Raises:
            ShapeError: the sizes do not fit.
        """
        check(SAF.forward, {"epoch": epoch})
        samples, places, classes = self.past.shape
        if logits.shape != (len(indices), classes):
            raise ShapeError(
                f"SAF got logits {tuple(logits.shape)} and {len(indices)} indices; logits must be "
                f"[{len(indices)}, {classes}]"
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < samples:
            raise ShapeError(
                f"SAF got indices from {int(indices.min())} to {int(indices.max())}; they must be "
                f"from 0 to {samples - 1}"
            )
        place = (epoch - self.epochs) % places
        known = self.epoch_of[indices, place] == epoch - self.epochs
        past = self.past[indices, place]
        self.past[indices, epoch % places] = logits.detach().to(self.past.dtype)
        self.epoch_of[indices, epoch % places] = epoch
        if epoch < self.start or (self.end is not None and epoch >= self.end) or not known.any():
            return logits.new_zeros(())
        now, then = logits[known], past[known].to(logits.dtype)
        share = known.float().mean().to(logits.dtype)
        return self.weight * share * trajectory_loss(then, now, self.temperature)


class MESA(nn.Module):
    """Memory-efficient sharpness-aware training: the past is what an average of the weights says.

    Add `mesa(logits, past_logits)` to the loss, where the past logits are those of a moving average
    of the model, such as `gossamer.optim.AveragedModel`, in `torch.no_grad()`. Language models need
    this form: there is no list of their samples.

    Args:
        weight: factor of the penalty.
        temperature: of both distributions.

    Reference:
        Du et al. 2022, "Sharpness-Aware Training for Free", MESA.

    Example:
        >>> MESA()(torch.ones(2, 3), torch.ones(2, 3)).item()
        0.0
    """

    def __init__(self, weight: NotNegative = 0.3, temperature: Positive = 5.0) -> None:
        super().__init__()
        check(MESA.__init__, locals())
        self.weight, self.temperature = weight, temperature

    def forward(self, logits: Tensor, past: Tensor) -> Tensor:
        """Return the penalty, 0-d, for logits [..., classes] of the present and the past.

        Raises:
            ShapeError: the shapes differ.
        """
        if logits.shape != past.shape:
            raise ShapeError(
                f"MESA got logits {tuple(logits.shape)} and past {tuple(past.shape)}; one shape is "
                "needed: run both models on the same batch"
            )
        return self.weight * trajectory_loss(past, logits, self.temperature)


__all__ = ["MESA", "SAF", "trajectory_loss"]
