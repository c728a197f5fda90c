"""Training with a penalty: which parameters have it, and how much of them is left."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gossamer.nn import SparseLinear
from gossamer.optim import ProxAdamW
from gossamer.prox import Penalty, PenaltyError, parse_penalty
from gossamer.schedules import Linear

if TYPE_CHECKING:
    from gossamer.train.loop import TrainConfig

# Penalties that are about groups act on a layer's output neurons unless told otherwise.
GROUPED = ("wgsef", "sparse_group_lasso")


@dataclass(frozen=True)
class Kept:
    """What is left of the penalised weights.

    Args:
        density: share of their entries that are not 0.
        kept_groups: groups that hold more than zeros.
        groups: of the penalty's grouping; entries where it takes each alone.
    """

    density: float
    kept_groups: int
    groups: int


def penalty_of(config: "TrainConfig") -> Penalty | None:
    """The penalty that a training's options describe, or None.

    Its strength is 0 for a tenth of the steps and then rises to ``lam`` over a fifth: in the first
    steps the gradients of a transformer's queries and keys are so small that Adam's metric lets a
    small penalty zero both, and from there no gradient leads back.

    Args:
        config: of the training.

    Returns:
        The penalty on a matrix [out_features, in_features].

    Raises:
        PenaltyError: an option is missing, unknown to the penalty, or out of its range.

    Example:
        >>> from gossamer.train import TrainConfig
        >>> penalty_of(TrainConfig(penalty="wgsef", lam=0.01, k="25%")).groups
        'neuron'
    """
    if config.penalty is None:
        for name in ("lam", "k", "p", "penalty_groups"):
            if getattr(config, name) is not None:
                raise PenaltyError(
                    f"train got {name}={getattr(config, name)!r:.40} without a penalty; name one "
                    "as well, such as wgsef"
                )
        return None
    name = config.penalty.strip().lower().replace("-", "_")
    groups = config.penalty_groups or ("neuron" if name in GROUPED else None)
    k: Any = config.k
    if k is not None and not k.strip().endswith("%"):
        k = _number(k)
    penalty = parse_penalty(name, lam=config.lam, k=k, p=config.p, groups=groups)
    if config.lam is None:
        return penalty
    tenth = config.steps // 10
    rising = Linear(0.0, config.lam, begin_step=tenth, end_step=3 * tenth)
    return parse_penalty(name, lam=rising, k=k, p=config.p, groups=groups)


def penalised_groups(
    model: nn.Module, groups: list[dict[str, object]], penalty: Penalty, exclude: tuple[str, ...]
) -> list[dict[str, object]]:
    """Give the linear layers' weights a penalty.

    Args:
        model: any module.
        groups: its parameters, as ``parameter_groups`` splits them.
        penalty: on a weight as a matrix; on a sparse weight it acts on the values.
        exclude: globs on module names; what they match has no penalty.

    Returns:
        Groups for ``ProxAdamW`` with named parameters: the penalised ones behind the rest of the
        group that they were in.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    penalties = {id(p): own for p, own in _penalised(model, penalty, exclude)}
    split: list[dict[str, object]] = []
    for group in groups:
        parameters: Any = group["params"]
        named = [(names[id(parameter)], parameter) for parameter in parameters]
        if rest := [pair for pair in named if id(pair[1]) not in penalties]:
            split.append(group | {"params": rest})
        split += [
            group | {"params": [pair], "penalty": penalties[id(pair[1])]}
            for pair in named
            if id(pair[1]) in penalties
        ]
    return split


def kept(optimizer: ProxAdamW) -> Kept:
    """Count what is left of the penalised parameters of an optimizer."""
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


def _penalised(
    model: nn.Module, penalty: Penalty, exclude: tuple[str, ...]
) -> Iterator[tuple[Tensor, Penalty]]:
    for name, module in model.named_modules():
        if any(_covers(glob, name) for glob in exclude):
            continue
        if isinstance(module, SparseLinear):
            yield module.weight.values, penalty.on(module.weight)
        elif isinstance(module, nn.Linear):
            yield module.weight, penalty


def _covers(glob: str, name: str) -> bool:
    """Whether a glob matches a module or one that it is inside of, as in ``sparsify``."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), glob) for i in range(1, len(parts) + 1))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # the penalty's own error says what it needs
