"""The penalty of a training: its options, and the count of the weights that it keeps."""

from dataclasses import dataclass
from typing import Any

from gossamer.arguments import check
from gossamer.optim import ProxAdamW
from gossamer.prox import Penalty, parse_penalty
from gossamer.schedules import Linear

# These penalties act on groups, by default the output neurons of a layer.
GROUPED = ("wgsef", "sparse_group_lasso")


@dataclass(frozen=True)
class PenaltyOptions:
    """The options of a penalty on the weights of the linear layers.

    Args:
        name: name of the penalty, such as `"wgsef"`, `"l1"` or `"lp"`.
        lam: strength, at least 0.
        k: budget, for penalties that have one: a number of groups, or a share such as `"25%"`.
        p: exponent, for penalties that have one.
        groups: grouping, such as `"neuron"`, `"input"` or `"block(8, 8)"`; None means
            `"neuron"` for penalties on groups and `"element"` for the others.

    Raises:
        PenaltyError: an option is missing, unknown to the penalty, or out of its range.

    Example:
        >>> PenaltyOptions("wgsef", lam=0.01, k="25%").penalty(steps=100).groups
        'neuron'
    """

    name: str
    lam: float | None = None
    k: str | None = None
    p: float | None = None
    groups: str | None = None

    def __post_init__(self) -> None:
        check(PenaltyOptions.__init__, vars(self))
        self._penalty(self.lam)

    def penalty(self, steps: int) -> Penalty:
        """Make the penalty, on a matrix [out_features, in_features].

        The strength is 0 for a tenth of the steps, then rises to `lam` over a fifth of them. The
        gradients of a transformer's queries and keys are tiny in the first steps, and Adam's metric
        then lets a small penalty zero both; once both are zero, neither receives a gradient again.

        Args:
            steps: steps of the whole training.
        """
        check(PenaltyOptions.penalty, locals())
        if self.lam is None:
            return self._penalty(None)
        tenth = steps // 10
        return self._penalty(Linear(0.0, self.lam, begin_step=tenth, end_step=3 * tenth))

    def _penalty(self, lam: float | Linear | None) -> Penalty:
        name = self.name.strip().lower().replace("-", "_")
        groups = self.groups or ("neuron" if name in GROUPED else None)
        k: Any = self.k
        if k is not None and not k.strip().endswith("%"):
            k = _number(k)
        return parse_penalty(name, lam=lam, k=k, p=self.p, groups=groups)


@dataclass(frozen=True)
class Kept:
    """Counts of the kept entries and groups of the penalised weights.

    Args:
        density: share of the entries that are not 0.
        kept_groups: number of groups with a non-zero entry.
        groups: number of groups of the penalty's grouping; without a grouping, of entries.
    """

    density: float
    kept_groups: int
    groups: int


def kept(optimizer: ProxAdamW) -> Kept:
    """Count the kept entries and groups of the penalised parameters of an optimizer."""
    counts = optimizer.sparsity()
    found = [
        counts[name]
        for group in optimizer.param_groups
        if group["penalty"] is not None
        for name in group["param_names"]
    ]
    entries = sum(count.entries for count in found)
    return Kept(
        1 - sum(count.zeros for count in found) / max(entries, 1),
        sum(count.groups - count.zero_groups for count in found),
        sum(count.groups for count in found),
    )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # the penalty raises its own error
