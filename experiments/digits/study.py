"""Structured sparsity on the digits: WGSEF beside group lasso, l1, group lp and pruning.

On scikit-learn's digits, with an MLP and a small LeNet. Every method keeps the same number of
neurons and filters of each hidden layer and is trained for the same number of epochs; its strength
is chosen on validation images among equally many. Accuracies are those on test images, over
several seeds.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bench.harness import machine
from bench.harness.results import write_json
from bench.harness.run import INTERRUPTED
from bench.harness.tables import publish
from experiments.digits.page import page, plot
from experiments.digits.training import (
    DENSE,
    LENET,
    MLP,
    SMALL,
    STRENGTHS,
    Course,
    Split,
    Trained,
    build,
    split_digits,
    train,
)
from gossamer import CheckpointError, GossamerError, shrink, timing

SCHEMA = 1
NAME = "structured-digits"
WHOLE = 1.0
# Images a call, for the latency.
BATCHES = (1, 256)
# The shrunk model's outputs may differ by this from those of the model with zeros.
SAME = 1e-5

Row = dict[str, Any]


@dataclass(frozen=True)
class Scope:
    """How much is trained.

    Args:
        cells: (network, share of each hidden layer's groups that may be kept).
        seeds: the first is the one with which strengths are compared.
        trials: strengths per method.
        course: of one training.
        repeats: calls for a latency, which is measured with all seeds but the first.
    """

    cells: tuple[tuple[str, float], ...] = (
        (MLP, 1 / 4), (MLP, 1 / 16), (LENET, 1 / 4), (LENET, 1 / 8),
    )  # fmt: skip
    seeds: tuple[int, ...] = (0, 1, 2)
    trials: int = 4
    course: Course = field(default_factory=Course)
    repeats: int = 101


QUICK = Scope(
    cells=((MLP, 1 / 4), (LENET, 1 / 4)),
    seeds=(0, 1),
    trials=1,
    course=Course(epochs=2, tuning=1, batch=250),
    repeats=3,
)


def run(out: Path, quick: bool, resume: bool, console: Console, scope: Scope | None = None) -> int:
    """Train everything that is missing, and write the table and the picture.

    Args:
        out: folder of the results.
        quick: a few epochs.
        resume: keep what the folder holds.
        console: where to print.
        scope: how much; None takes what ``quick`` says.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        GossamerError: the digits are not there, or the folder cannot be used.
    """
    scope = scope or (QUICK if quick else Scope())
    path = out / f"{NAME}.json"
    content = _begin(path, scope, resume)
    stopped = False
    data = split_digits()
    try:
        with timing.threads(1):
            for network, share, method in contests(scope):
                chosen = contest(scope, network, share, method, content, path, data)
                accuracies = ", ".join(f"{row['test']:.1%}" for row in chosen)
                console.print(f"{network}, {share:.3g}, {method}: {accuracies}", highlight=False)
    except KeyboardInterrupt:
        stopped = True
    content["complete"] = not stopped
    write_json(path, content)
    written = [path, publish(page(content), path, console)]
    picture = path.with_suffix(".png")
    if plot(content["chosen"], picture):
        written.append(picture)
    console.print("   ".join(map(str, written)), highlight=False)
    if stopped:
        console.print("stopped; --resume trains what is missing", highlight=False)
    return INTERRUPTED if stopped else 0


def contests(scope: Scope) -> Iterator[tuple[str, float, str]]:
    """Network, share and method of everything that is compared."""
    for network in dict.fromkeys(network for network, _ in scope.cells):
        yield network, WHOLE, DENSE
    for network, share in scope.cells:
        for method in STRENGTHS:
            if method != DENSE:
                yield network, share, method


def contest(
    scope: Scope, network: str, share: float, method: str, content: Row, path: Path, data: Split
) -> list[Row]:
    """One method at one budget: choose its strength on the validation images, then all seeds.

    Args:
        scope: how much.
        network: which.
        share: of the groups to keep.
        method: which.
        content: of the file; rows are appended.
        path: of the file, written after each training.
        data: the images.

    Returns:
        A row for each seed, all with the chosen strength.
    """

    def row(strength: float, seed: int) -> Row:
        at = {
            "network": network, "share": share, "method": method, "strength": strength,
            "seed": seed,
        }  # fmt: skip
        for known in content["runs"]:
            if all(known[name] == value for name, value in at.items()):
                return dict(known)
        trained = train(network, method, share, strength, seed, scope.course, data)
        # Trials of one seed say nothing about latency that the other seeds do not.
        repeats = 0 if seed == scope.seeds[0] else scope.repeats
        found = at | _measured(trained, network, method, repeats)
        content["runs"].append(found)
        write_json(path, content)
        return found

    first, *others = scope.seeds
    trials = [row(strength, first) for strength in islice(STRENGTHS[method], scope.trials)]
    best = max(trials, key=lambda one: one["validation"])
    chosen = [best, *(row(best["strength"], seed) for seed in others)]
    content["chosen"] = [
        kept for kept in content["chosen"]
        if (kept["network"], kept["share"], kept["method"]) != (network, share, method)
    ] + chosen  # fmt: skip
    return chosen


def _measured(trained: Trained, network: str, method: str, repeats: int) -> Row:
    """Accuracies, and what the smaller model costs beside the whole one."""
    row: Row = trained._asdict()
    model, whole = row.pop("model"), build(network)
    small = model
    if method not in (DENSE, SMALL):
        try:
            small = shrunk(model)
        except GossamerError as error:
            # Nothing is left of a layer: the strength was too much.
            return row | {"failed": str(error)}
    row["parameters"], row["whole_parameters"] = map(parameters, (small, whole))
    row["flops"], row["whole_flops"] = map(flops, (small, whole))
    if repeats:
        row |= _latencies({"latency": small, "whole_latency": whole}, repeats)
    return row


def _latencies(models: dict[str, nn.Module], repeats: int) -> Row:
    """Seconds of a call, by the name of the model and the number of images."""
    inputs = {batch: torch.rand(batch, 1, 8, 8) for batch in BATCHES}
    at = {f"{name} {n}": (name, n) for name in models for n in inputs}
    fns = {key: _caller(models[name], inputs[n]) for key, (name, n) in at.items()}
    found: Row = {name: {} for name in models}
    for key, times in timing.interleaved(fns, repeats=repeats).items():
        name, n = at[key]
        found[name][str(n)] = times.median
    return found


def _caller(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    model.eval()

    @torch.no_grad()
    def call() -> torch.Tensor:
        return torch.as_tensor(model(x))

    return call


def shrunk(model: nn.Module) -> nn.Module:
    """The model without its zeros, verified.

    Args:
        model: with rows of zeros.

    Returns:
        A smaller one.

    Raises:
        GossamerError: it cannot be shrunk, or gives other outputs.
    """
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    small = shrink(model, x)
    with torch.no_grad():
        difference = float((small(x) - model(x)).abs().max())
    if not difference <= SAME:
        raise GossamerError(f"the shrunk model's outputs differ by {difference:.1e}")
    return small


def parameters(model: nn.Module) -> int:
    """Numbers that the model stores.

    Example:
        >>> parameters(nn.Linear(3, 2))
        8
    """
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def flops(model: nn.Module) -> int:
    """Floating-point operations of the products for one image: two for each multiplication.

    Example:
        >>> flops(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        1280
    """
    total = 0

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and weight is not None:
            total += 2 * output.numel() // output.shape[1] * weight.numel()

    handles = [m.register_forward_hook(count) for m in model.modules()]
    model(torch.zeros(1, 1, 8, 8))
    for handle in handles:
        handle.remove()
    return total


def _begin(path: Path, scope: Scope, resume: bool) -> Row:
    settings = json.loads(json.dumps(asdict(scope)))
    facts = {"cpu": machine.cpu_name(), "cores": machine.available_cores()}
    facts |= {"versions": machine.versions(("scikit-learn",))}
    fresh: Row = {
        "schema": SCHEMA, "machine": facts, "settings": settings, "complete": False,
        "runs": [], "chosen": [],
    }  # fmt: skip
    if not (resume and path.exists()):
        return fresh
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["schema"] != SCHEMA or earlier["settings"] != settings:
            raise CheckpointError(
                f"{path} was made with other settings; train anew without --resume, or in "
                "another --out"
            )
        return fresh | {"runs": earlier["runs"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, GossamerError):
            raise
        raise CheckpointError(
            f"{path} holds no results ({type(error).__name__}: {error}); train anew without "
            "--resume"
        ) from error
