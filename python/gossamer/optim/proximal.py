"""The base of the proximal optimizers: penalties per parameter group, their checks and state.

theta <- prox_{s g}(theta - s * direction): gradient step and threshold share one step size s.
Penalties are configuration, like the function of a LambdaLR: state dicts do not contain them, and
loading keeps the optimizer's own. Only `penalty_step`, the step of their schedules, is state.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from gossamer.arguments import check, shown
from gossamer.backend.registry import devices, is_registered
from gossamer.errors import ArgumentError, CheckpointError, DeviceError, DTypeError, GossamerError
from gossamer.optim.half_space import HalfSpace, group_count, zero_groups
from gossamer.prox import Penalty

Group = dict[str, Any]
# Entries of a parameter group that are configuration, not state.
PROGRAM = ("penalty", "half_space", "accumulate")
DTYPES = (torch.float32, torch.float64)


class Sparsity(NamedTuple):
    """Counts of zeros in one parameter.

    Attributes:
        entries: number of entries.
        zeros: number of entries that are exactly 0.
        groups: number of groups of the parameter's penalty; without one each entry is a group.
        zero_groups: number of groups whose entries are all 0.
    """

    entries: int
    zeros: int
    groups: int
    zero_groups: int

    @property
    def density(self) -> float:
        """Share of the entries that are not 0."""
        return 1 - self.zeros / max(self.entries, 1)


class Proximal(Optimizer):
    """Base class of the proximal optimizers; it precedes a torch optimizer in the list of bases."""

    _can_accumulate: ClassVar[bool] = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """False: a GradScaler must unscale the gradients itself and skip whole steps.

        torch's fused optimizers set it and then receive scaled gradients; penalties are unscaled.
        """
        return False

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, _: bool) -> None:
        pass

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, with its own `penalty=` and `half_space=` if given.

        Args:
            param_group: as for torch's optimizers.

        Raises:
            DTypeError: the penalty is not a `Penalty`, or a penalised parameter is neither
                float32 nor float64.
            DeviceError: a penalised parameter is not on the CPU.
            ArgumentError: the learning rate of a penalised group is not positive.
            GossamerError: the penalty's groups do not fit a parameter's shape; the message names
                the parameter.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise DTypeError(
                f'add_param_group got {shown(param_group)}; a dict with "params" is needed'
            )
        check_settings(type(self), param_group)
        super().add_param_group(param_group)
        try:
            for name in PROGRAM:
                param_group.setdefault(name, self.defaults.get(name))
            param_group.setdefault("penalty_step", 0)
            self._check_group(len(self.param_groups) - 1)
        except BaseException:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state as in torch; it does not contain penalties."""
        packed = super().state_dict()
        for group in packed["param_groups"]:
            for name in PROGRAM:
                group.pop(name, None)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; penalties stay, and their schedules continue at the loaded step.

        Args:
            state_dict: state of this optimizer, or of the torch optimizer that it extends.
        """
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise CheckpointError(
                f'load_state_dict got {shown(state_dict)}; a dict with "state" and '
                '"param_groups" is needed: pass what optimizer.state_dict() gave'
            )
        program = [{name: group[name] for name in PROGRAM} for group in self.param_groups]
        try:
            super().load_state_dict(state_dict)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"load_state_dict got a damaged state ({type(error).__name__}: {error}); pass "
                "what optimizer.state_dict() gave"
            ) from error
        for group, own in zip(self.param_groups, program, strict=True):
            group.update(own)
            group.setdefault("penalty_step", 0)

    @torch.no_grad()
    def sparsity(self) -> dict[str, Sparsity]:
        """Count the zero entries and the zero groups of each parameter.

        Returns:
            One `Sparsity` per parameter, under its name, or under `"group.index"` for parameters
            given without names.

        Example:
            >>> from gossamer.optim import ProxSGD
            >>> from gossamer.prox import L1
            >>> weight = torch.nn.Parameter(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
            >>> optimizer = ProxSGD([weight], lr=0.1, penalty=L1(0.1, groups="neuron"))
            >>> optimizer.sparsity()["0.0"]
            Sparsity(entries=4, zeros=3, groups=2, zero_groups=1)
        """
        counts = {}
        for name, parameter, group in self._parameters():
            zeros = int((parameter == 0).sum())
            groups, empty = parameter.numel(), zeros
            if (penalty := group["penalty"]) is not None:
                groups = group_count(penalty, parameter)
                empty = int(zero_groups(penalty, parameter).sum())
            counts[name] = Sparsity(parameter.numel(), zeros, groups, empty)
        return counts

    @torch.no_grad()
    def stationarity(self) -> dict[str, float]:
        """Measure how far each parameter is from a fixed point, at its current gradient.

        The measure is the proximal residual |theta - prox_{s g}(theta - s grad)| / s in the 2-norm,
        where s is the learning rate; without a penalty it is the norm of the gradient.

        Returns:
            One number per parameter with a gradient, named as in `sparsity`.
        """
        residuals = {}
        for name, parameter, group in self._parameters():
            if parameter.grad is None:
                continue
            penalty, step = self._penalty(group), float(group["lr"])
            if penalty is None or step == 0:
                residuals[name] = float(parameter.grad.norm())
                continue
            ahead = penalty.prox_(parameter.sub(parameter.grad, alpha=step), step)
            residuals[name] = float((parameter - ahead).norm()) / step
        return residuals

    def _penalty(self, group: Group) -> Penalty | None:
        """A group's penalty at its current step, or None if it has no effect."""
        if group["penalty"] is None:
            return None
        penalty: Penalty = group["penalty"].at(group["penalty_step"])
        return None if _is_idle(penalty) else penalty

    def _penalised(self) -> Iterator[tuple[Group, Penalty]]:
        """Yield each group with an active penalty, and the penalty; check the gradients."""
        for index, group in enumerate(self.param_groups):
            penalty = self._penalty(group)
            step = float(group["lr"])
            if penalty is None or step == 0:  # a step of no length moves nothing
                continue
            if not step > 0:
                raise ArgumentError(
                    f"parameter group {index} has lr={step:g} and a penalty; a proximal step "
                    "needs a positive lr: change the schedule, or remove the penalty"
                )
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.layout != torch.strided:
                    raise DTypeError(
                        "a penalised parameter has a sparse gradient; a proximal step needs a "
                        "dense gradient: build the embedding with sparse=False"
                    )
            yield group, penalty

    def _before(self, penalised: list[tuple[Group, Penalty]]) -> dict[Tensor, Tensor]:
        """Copies of the parameters in groups that are in their second stage."""
        return {
            parameter: parameter.clone()
            for group, _ in penalised
            if group["half_space"] and group["penalty_step"] >= group["half_space"].start
            for parameter in group["params"]
            if parameter.grad is not None
        }

    def _advance(self) -> None:
        """Count the step for the penalties' schedules."""
        for group in self.param_groups:
            group["penalty_step"] += 1

    def _parameters(self) -> Iterator[tuple[str, Tensor, Group]]:
        for index, group in enumerate(self.param_groups):
            for name, parameter in zip(_names(index, group), group["params"], strict=True):
                yield name, parameter, group

    def _check_group(self, index: int) -> None:
        group = self.param_groups[index]
        penalty, second = group["penalty"], group["half_space"]
        if second is not None and not isinstance(second, HalfSpace):
            raise DTypeError(
                f"parameter group {index} got half_space={second!r:.60}; a "
                "gossamer.optim.HalfSpace or None is needed"
            )
        if group.get("differentiable"):
            raise DTypeError(
                f"{type(self).__name__} got differentiable=True; proximal steps are not "
                "differentiable: use the torch optimizer"
            )
        accumulate = group["accumulate"]
        if not isinstance(accumulate, bool | None) or (
            accumulate and (second or not self._can_accumulate)
        ):
            raise DTypeError(
                f"parameter group {index} got accumulate={accumulate!r:.60}; True or False is "
                "needed, and True only for ProxAdamW without half_space="
            )
        if penalty is None:
            return
        if not isinstance(penalty, Penalty):
            raise DTypeError(
                f"parameter group {index} got penalty={penalty!r:.60} ({type(penalty).__name__}); "
                "a penalty of gossamer.prox is needed, such as L1(1e-4), or None"
            )
        if group.get("capturable"):
            raise DTypeError(
                f"parameter group {index} has capturable=True and a penalty; proximal steps "
                "are not captured in a CUDA graph: leave capturable out"
            )
        lr = float(group["lr"])
        if not (math.isfinite(lr) and lr > 0):
            raise ArgumentError(
                f"parameter group {index} got lr={lr:g} and a penalty; a proximal step needs a "
                "positive lr, such as 1e-3"
            )
        for name, parameter in zip(_names(index, group), group["params"], strict=True):
            if parameter.dtype not in DTYPES:
                raise DTypeError(
                    f"parameter {name} is {parameter.dtype} and has a penalty; proximal steps "
                    "need float32 or float64: keep a float32 parameter and use autocast"
                )
            if not is_registered(parameter):
                raise DeviceError(
                    f"parameter {name} is on {parameter.device} and has a penalty; proximal steps "
                    f"run on {' and '.join(devices())}: move the model with .cpu()"
                )
            if not parameter.numel():
                continue
            try:
                penalty.at(0).value(torch.zeros_like(parameter))
            except GossamerError as error:
                raise type(error)(f"parameter {name}: {error}") from None


def check_settings(kind: type, given: Mapping[str, Any]) -> None:
    """Check what an optimizer or one of its groups was given, but for parameters and penalties.

    Raises:
        DTypeError, ArgumentError: a setting is not what the optimizer's annotation says.
    """
    names = set(given) - {"params", *PROGRAM}
    check(kind.__init__, {name: given[name] for name in names})  # type: ignore[misc]


def with_program(
    params: Iterable[Any],
    penalty: Penalty | None,
    half_space: HalfSpace | None,
    accumulate: bool | None = None,
) -> Iterable[Any]:
    """`params` as torch takes them, with the default penalty in each group without its own."""
    if isinstance(params, Tensor | dict | str | bytes) or not isinstance(params, Iterable):
        raise DTypeError(
            f"params is {shown(params)}; an iterable of parameters or of groups is needed: pass "
            "model.parameters(), or a list"
        )
    listed = list(params)
    for given in listed:
        if not isinstance(given, Tensor | dict | tuple):
            raise DTypeError(
                f"params holds {shown(given)}; tensors, (name, tensor) or groups are needed: pass "
                "model.parameters()"
            )
    program = {"penalty": penalty, "half_space": half_space, "accumulate": accumulate}
    if not listed:
        return listed
    if isinstance(listed[0], dict):
        return [program | group if isinstance(group, dict) else group for group in listed]
    return [program | {"params": listed}]


def torch_step(optimizer: Optimizer, kind: type[Optimizer], groups: list[Group]) -> None:
    """Take torch's own step in the given groups, without running the step hooks again."""
    everything = optimizer.param_groups
    optimizer.param_groups = groups
    try:
        inspect.unwrap(kind.step)(optimizer)
    finally:
        optimizer.param_groups = everything


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """The return value of a closure, which may call backward; None without a closure."""
    if closure is None:
        return None
    if not callable(closure):
        raise DTypeError(f"step got closure={shown(closure)}; a function or None is needed")
    with torch.enable_grad():
        return closure()


def _is_idle(penalty: Penalty) -> bool:
    if getattr(penalty, "positive", False):
        return False
    strengths = [getattr(penalty, name, None) for name in ("lam", "group_lam")]
    return any(s == 0 for s in strengths) and all(s is None or s == 0 for s in strengths)


def _names(index: int, group: Group) -> list[str]:
    names: list[str] = group.get("param_names", [])
    return names or [f"{index}.{i}" for i in range(len(group["params"]))]
