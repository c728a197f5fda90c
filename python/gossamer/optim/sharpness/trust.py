"""Sharpness within a trust region: the outputs say how far the weights are moved."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer.arguments import NotNegative, check
from gossamer.errors import RecipeError, ShapeError
from gossamer.optim.sharpness.attached import By
from gossamer.optim.sharpness.perturbations import SAM, scaled
from gossamer.optim.sharpness.trajectory import trajectory_loss


class TRAM(SAM):
    """Trust-region aware minimisation: SAM whose radius is a divergence of the outputs.

    Gradients at w + rho d g / ||g||, d = KL(softmax(past) || softmax(logits)), the mean over rows.
    For fine-tuning: where the outputs are still those of the pretrained model, the weights hardly
    move. The loss calls `region` once per batch, with the outputs of the weights to stay near, in
    `torch.no_grad()`: those of the pretrained model, of the step before or of an average of the
    weights (`gossamer.optim.AveragedModel`), or the present ones' of an input with noise.

    Args:
        rho: factor of the divergence, at least 0; 0 is the optimizer alone.
        each_process: see `Sharpness`; the divergence is that of a process's own batch then.

    Raises:
        ArgumentError: rho is negative or not finite.

    Reference:
        Sherborne et al. 2024, "TRAM: Bridging Trust Regions and Sharpness Aware Minimization". The
        released code divides the divergence by the number of classes and of rows once more, which
        `rho` can stand for, and moves along ones instead of the gradient, which we do not follow.

    Example:
        >>> model, start = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tram = TRAM()
        >>> tram.attach(model, optimizer)
        >>> x, y = torch.randn(8, 4), torch.arange(8) % 3
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     logits = model(x)
        ...     with torch.no_grad():
        ...         tram.region(logits, start(x))
        ...     loss = nn.functional.cross_entropy(logits, y)
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure) >= 0
        tensor(True)
    """

    def __init__(self, rho: NotNegative = 1.0, each_process: bool = False) -> None:
        super().__init__(rho, each_process)
        check(TRAM.__init__, locals())
        self._found: list[Tensor] = []  # divergences of the micro-batches of this pass

    def region(self, logits: Tensor, past: Tensor) -> None:
        """Tell the outputs of a batch.

        Args:
            logits: [..., classes] of the present weights.
            past: of the weights to stay near; same shape.

        Raises:
            ShapeError: the shapes differ.
        """
        if logits.shape != past.shape:
            raise ShapeError(
                f"TRAM got logits {tuple(logits.shape)} and past {tuple(past.shape)}; one shape is "
                "needed: run both models on the same batch"
            )
        with torch.no_grad():
            self._found.append(trajectory_loss(past, logits.detach(), 1.0))

    def offsets(self, gradients: By) -> By:
        """Return rho d g / ||g||."""
        if not self._found:
            raise RecipeError(
                "TRAM needs the outputs of each batch: call region(logits, past) beside the loss"
            )
        # Not below 0, where rounding takes it if both outputs are the same.
        divergence = torch.stack(self._found).mean().clamp_min(0)
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not self.each_process:
            dist.all_reduce(divergence)
            divergence /= dist.get_world_size()
        self._found.clear()
        moved = scaled(gradients, self.rho, gradients)
        return {p: torch.nan_to_num(offset * divergence) for p, offset in moved.items()}

    def combine(self, gradients: By, second: By) -> By:
        """Return the second gradients; what `region` heard in their pass does not count."""
        self._found.clear()
        return second


__all__ = ["TRAM"]
