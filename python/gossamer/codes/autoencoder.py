"""The TopK sparse autoencoder, with HierarchicalTopK and gradient-TopK as options.

    z = ReLU(TopK_k(W_enc (x - b_pre) + b_lat)),   x^ = z W_dec + b_pre

Encoder and decoder are [latents, features]: one row per latent. Only the forward product of the
encoder is dense; decoding and every gradient cost O(k features) per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.arguments import NotNegative, Steps, check
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING
from gossamer.codes import core
from gossamer.codes.core import Code
from gossamer.codes.functions import decode, prefix_errors, selected
from gossamer.codes.losses import at_levels, check_levels
from gossamer.errors import ArgumentError, DTypeError, ShapeError


class Losses(NamedTuple):
    """The result of `TopKAutoencoder.loss`.

    Attributes:
        total: the loss to minimise, a scalar.
        reconstruction: scaled mean squared error, a scalar.
        auxiliary: error of the residual as the dead latents reconstruct it; 0 when none is dead.
        code: active latents of the batch.
    """

    total: Tensor
    reconstruction: Tensor
    auxiliary: Tensor
    code: Code


class TopKAutoencoder(nn.Module):
    """A sparse autoencoder with k active latents per row.

    A training step calls `loss(x).total.backward()`, `project_gradient_()`, `optimizer.step()` and
    `normalise_()`. Call `start_from` with a sample before the first step.

    Args:
        features: entries per input row.
        latents: entries per code, of which k are active.
        k: active latents per row.
        levels: numbers of active latents, in [1, k], over which HierarchicalTopK averages the
            loss; None is plain TopK, the same as (k,).
        aux_k: dead latents per row that reconstruct the residual (AuxK).
        aux_weight: weight of the AuxK loss.
        dead_tokens: rows without activity after which a latent is dead.
        beta: strength with which gradient-TopK prefers latents along a given gradient.
        dtype: float32 or float64.

    Raises:
        ArgumentError: A size or number is out of range.
        DTypeError: A size is not an integer.

    Reference:
        Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (the recipe and its defaults);
        Balagansky et al. 2025, "Train One Sparse Autoencoder Across Multiple Sparsity Budgets"
        (HierarchicalTopK); Olmo et al. 2024, "Features that Make a Difference" (gradient-TopK).

    Example:
        >>> autoencoder = TopKAutoencoder(features=8, latents=32, k=4)
        >>> x = torch.randn(16, 8)
        >>> autoencoder.start_from(x)
        >>> autoencoder(x).shape, autoencoder.encode(x).indices.shape
        (torch.Size([16, 8]), torch.Size([16, 4]))
    """

    tokens_since_active: Tensor
    input_variance: Tensor

    def __init__(
        self,
        features: int = 768,
        latents: int = 32768,
        k: int = 32,
        *,
        levels: Sequence[int] | None = None,
        aux_k: int = 256,
        aux_weight: NotNegative = 1 / 32,
        dead_tokens: int = 10_000_000,
        beta: NotNegative = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check(TopKAutoencoder.__init__, locals())
        given = (features, latents, k, aux_k, dead_tokens)
        names = ("features", "latents", "k", "aux_k", "dead_tokens")
        for name, size in zip(names, given, strict=True):
            if type(size) is not int:
                raise DTypeError(f"TopKAutoencoder got {name}={size!r:.40}; an integer is needed")
        if features < 1 or not 1 <= k <= latents or aux_k < 0 or dead_tokens < 0:
            raise ArgumentError(
                f"TopKAutoencoder got features={features}, latents={latents}, k={k}, "
                f"aux_k={aux_k}, dead_tokens={dead_tokens}; features at least 1, k in [1, latents] "
                "and the others not negative are needed"
            )
        self.k, self.aux_k, self.aux_weight = k, min(aux_k, latents), aux_weight
        self.levels = None if levels is None else check_levels(levels, k)
        self.dead_tokens, self.beta = dead_tokens, beta
        self.encoder = nn.Parameter(
            nn.Linear(features, latents, bias=False, dtype=dtype).weight.detach()
        )
        self.latent_bias = nn.Parameter(torch.zeros(latents, dtype=dtype))
        self.decoder = nn.Parameter(self.encoder.detach().clone())
        self.pre_bias = nn.Parameter(torch.zeros(features, dtype=dtype))
        self.register_buffer("tokens_since_active", torch.zeros(latents, dtype=torch.int64))
        self.register_buffer("input_variance", torch.ones((), dtype=dtype))
        self.normalise_()

    @torch.no_grad()
    def start_from(self, sample: Tensor, seed: int = 0) -> None:
        """Initialise the pre-bias, the loss scale and the encoder scale from data.

        The pre-bias becomes the geometric median of the sample, the loss is divided by the
        sample's variance, and the encoder is scaled so that the reconstructions of unit vectors
        have norm 1 on average.

        Args:
            sample: [rows, features] with at least two different rows.
            seed: seed of the random unit vectors.

        Raises:
            ArgumentError: all rows of the sample are equal.
            ShapeError: the sample has another shape.
        """
        self._check(sample)
        variance = (sample - sample.mean(0)).square().mean()
        if not (variance > 0):
            raise ArgumentError(
                "start_from got a sample without variance; at least two different rows are needed"
            )
        self.input_variance.copy_(variance)
        self.pre_bias.copy_(geometric_median(sample))
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(256, sample.shape[1], generator=random, dtype=sample.dtype)
        x /= x.norm(dim=1, keepdim=True)
        back = self(x + self.pre_bias) - self.pre_bias
        self.encoder.div_(back.norm(dim=1).mean().clamp_min(1e-6))

    def encode(self, x: Tensor, input_gradient: Tensor | None = None) -> Code:
        """Return the active latents of each row.

        Args:
            x: [batch, features].
            input_gradient: [batch, features], the gradient of a later loss with respect to x, for
                gradient-TopK: the k largest of z + beta z |W_dec gradient| are selected, and their
                values are z.

        Returns:
            Values >= 0 and indices, both [batch, k], in the order of selection.
        """
        return self._encode(x, input_gradient)[0]

    def decode(self, code: Code) -> Tensor:
        """Return the reconstruction [batch, features] of a code [batch, any number of latents]."""
        return decode(code, self.decoder, self.pre_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction [batch, features] of x [batch, features]."""
        return self.decode(self.encode(x))

    def loss(self, x: Tensor, input_gradient: Tensor | None = None) -> Losses:
        """Return the loss of a batch; in training mode, also update the activity counts.

        Args:
            x: [batch, features].
            input_gradient: see `encode`.

        Returns:
            The loss and its parts: the squared error over the data's variance, averaged over
            `levels`, plus `aux_weight` times the AuxK error.
        """
        code, pre = self._encode(x, input_gradient)
        if self.levels is None:
            residual = x - self.decode(code)
            reconstruction = residual.square().mean()
        else:
            errors, residual = prefix_errors(x, code, self.decoder, self.pre_bias)
            reconstruction = at_levels(errors, self.levels).mean() / x.shape[1]
        reconstruction = reconstruction / self.input_variance
        if self.training:
            self._count(code)
        auxiliary = self._auxiliary(x, pre, residual.detach())
        total = reconstruction + self.aux_weight * auxiliary
        return Losses(total, reconstruction, auxiliary, code)

    @property
    def dead(self) -> Tensor:
        """The dead latents as bool [latents]: not active in the last `dead_tokens` rows."""
        return self.tokens_since_active > self.dead_tokens

    @torch.no_grad()
    def normalise_(self) -> None:
        """Scale each row of the decoder to norm 1."""
        tiny = torch.finfo(self.decoder.dtype).tiny
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp_min(tiny))

    @torch.no_grad()
    def project_gradient_(self) -> None:
        """Remove the part of the decoder's gradient that is parallel to each row."""
        grad = self.decoder.grad
        if grad is not None:
            grad.addcmul_((grad * self.decoder).sum(1, keepdim=True), self.decoder, value=-1)

    def adam(self, lr: float = 1e-4) -> torch.optim.Adam:
        """Return Adam with the settings of Gao et al. 2024."""
        parameters: Iterable[nn.Parameter] = self.parameters()
        return torch.optim.Adam(parameters, lr=lr, eps=6.25e-10)

    def _encode(self, x: Tensor, input_gradient: Tensor | None) -> tuple[Code, Tensor]:
        self._check(x)
        centred = x - self.pre_bias
        with torch.no_grad():
            pre = torch.addmm(self.latent_bias, centred, self.encoder.T)
            if input_gradient is None or self.beta == 0.0:
                code = core.top_k(pre, self.k)
            else:
                if input_gradient.shape != x.shape:
                    raise ShapeError(
                        f"input_gradient has shape {list(input_gradient.shape)}; the shape of x, "
                        f"{list(x.shape)}, is needed: pass the gradient with respect to x"
                    )
                score = pre * (1.0 + self.beta * (input_gradient @ self.decoder.T).abs())
                indices = core.top_k(score, self.k).indices
                code = Code(pre.gather(1, indices), indices)
        code = selected(centred, self.encoder, self.latent_bias, code)
        return code._replace(values=code.values.relu()), pre

    @torch.no_grad()
    def _count(self, code: Code) -> None:
        self.tokens_since_active += len(code.indices)
        self.tokens_since_active[code.indices[code.values > 0]] = 0

    def _auxiliary(self, x: Tensor, pre: Tensor, residual: Tensor) -> Tensor:
        """Return the normalised error of the residual as the dead latents reconstruct it."""
        dead = self.dead.nonzero().flatten()
        k = min(self.aux_k, len(dead))
        if not self.training or self.aux_weight == 0.0 or k == 0:
            return x.new_zeros(())
        values, places = core.top_k(pre[:, dead], k)
        code = selected(
            x - self.pre_bias, self.encoder, self.latent_bias, Code(values, dead[places])
        )
        explained = decode(code._replace(values=code.values.relu()), self.decoder)
        scale = (residual - residual.mean(0)).square().mean()
        if not (scale > 0):  # one row, or nothing left to explain
            return x.new_zeros(())
        return (explained - residual).square().mean() / scale

    def _check(self, x: Tensor) -> None:
        d = self.encoder.shape[1]
        if not isinstance(x, Tensor) or x.dtype != self.encoder.dtype or x.is_sparse:
            raise DTypeError(
                f"TopKAutoencoder got {getattr(x, 'dtype', type(x).__name__)}; a dense tensor of "
                f"{self.encoder.dtype} is needed: convert it first"
            )
        if x.dim() != 2 or x.shape[1] != d or x.shape[0] == 0:
            raise ShapeError(
                f"TopKAutoencoder got x of shape {list(x.shape)}; [batch, {d}] with at least one "
                "row is needed"
            )


def geometric_median(points: Tensor, iterations: Steps = 100) -> Tensor:
    """Return the point with the least sum of distances to the rows, by Weiszfeld's iteration.

    Args:
        points: [rows, features].
        iterations: largest number of iterations.

    Returns:
        [features].

    Raises:
        ArgumentError: a point is infinite or NaN, or `iterations` is below 1.
        DTypeError, ShapeError: the points are not a floating matrix with an entry.

    Example:
        >>> geometric_median(torch.tensor([[0.0], [1.0], [50.0]])).round()
        tensor([1.])
    """
    check(geometric_median, locals())
    check_array(
        points, "geometric_median: points", rank=2, dtypes=FLOATING, filled=True, device=True
    )
    if not bool(points.isfinite().all()):
        raise ArgumentError(
            "geometric_median got points with infinity or NaN; finite points are needed: drop them"
        )
    x = points.double()
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1.0 / (x - median).norm(dim=1).clamp_min(1e-12)
        moved = (weights @ x) / weights.sum()
        if bool((moved - median).norm() <= 1e-9 * (1.0 + median.norm())):
            break
        median = moved
    return median.to(points.dtype)
