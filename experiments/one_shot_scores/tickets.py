"""Strong tickets: subnetworks of a random network for digits, in which no weight is trained.

EdgePopup searches in the whole random network, or inside a random source network that is sparse
already. Beside it: the same sparsity at random untrained, and trained (static masks, and gradual
pruning from the whole network and inside the source).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from bench.harness.words import spread
from bench.transport.cases import digit_images
from gossamer import timing
from gossamer.recipes import GMP, EdgePopup, Recipe, Static

SCHEMA = 1
NAME = "strong-tickets"
SPARSITIES = (80, 90, 95, 98)
WHOLE = 0


@dataclass(frozen=True)
class Plan:
    """What all trainings share.

    Args:
        epochs: over the images.
        batch: images per step.
        width: of both hidden layers.
        lr: at the start; it falls to 0 by a cosine.
        momentum: of SGD.
        score_lr: at the start, where scores are trained.
    """

    epochs: int = 15
    batch: int = 50
    width: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    score_lr: float = 0.1


class Training(NamedTuple):
    """One training: method, sparsity of the source and in the end in percent, and seed."""

    method: str
    source: int
    sparsity: int
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return self._asdict()


METHODS: dict[str, Callable[[str, int], Recipe]] = {
    "EdgePopup": lambda pattern, seed: EdgePopup(pattern, seed=seed),
    "GMP": lambda pattern, seed: GMP(pattern),
    "Static": lambda pattern, seed: Static(pattern, seed=seed),
    "untrained": lambda pattern, seed: Static(pattern, seed=seed),
}
SOURCES = {"EdgePopup": (WHOLE, 50), "GMP": (WHOLE, 50), "Static": (WHOLE,), "untrained": (WHOLE,)}


def measure(plan: Plan, training: Training) -> Row:
    """Train once on one thread.

    Args:
        plan: what all trainings share.
        training: this one.

    Returns:
        The training, and the share of right answers on other images.
    """
    images, labels = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(images / 16).float().flatten(1)[order], torch.from_numpy(labels)[order]
    with timing.threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows without any entry
        torch.manual_seed(training.seed)
        width = plan.width
        model: nn.Module = nn.Sequential(
            nn.Linear(64, width, bias=False), nn.ReLU(),
            nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, 10, bias=False),
        )  # fmt: skip
        recipe = METHODS[training.method](f"{training.sparsity}%", training.seed)
        source = None if training.source == WHOLE else f"{training.source}%"
        model = recipe.prepare(model, source=source)
        if training.method != "untrained":
            lr = plan.score_lr if training.method == "EdgePopup" else plan.lr
            _train(plan, recipe, model, x[:1297], y[:1297], lr, training.seed)
        model = recipe.finish(model)
        with torch.no_grad():
            right = (model(x[1297:]).argmax(1) == y[1297:]).double().mean().item()
    return training.row | {"accuracy": right}


def _train(
    plan: Plan, recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor, lr: float, seed: int
) -> None:
    optimizer = torch.optim.SGD(recipe.parameters(model), lr, plan.momentum)
    steps = plan.epochs * -(-len(x) // plan.batch)
    recipe.attach(model, optimizer, steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = torch.Generator().manual_seed(seed)
    for _ in range(plan.epochs):
        for chosen in torch.randperm(len(x), generator=random).split(plan.batch):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    sparsities: Sequence[int] = SPARSITIES,
    seeds: int = 2,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what all trainings share.
        sparsities: in percent; those below a source's are left out with it.
        seeds: trainings of each, from seed 0.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options.
        ArgumentError: a number of seeds or jobs below 1.
    """
    plan, console = plan or Plan(), console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path, header = out / f"{NAME}.jsonl", header_of(SCHEMA, asdict(plan))
    grid = [
        Training(method, source, sparsity, seed)
        for seed in range(seeds)
        for method, sources in SOURCES.items()
        for source in sources
        for sparsity in sparsities
        if sparsity > source
    ]
    return carry_out(
        path,
        header,
        [Work(partial(measure, plan), grid, jobs)],
        _key,
        _words,
        page,
        overwrite=overwrite,
        console=console,
    )


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows: a line per method and source, a column per sparsity."""
    plan = header["plan"]
    lines = [
        made_on(header, "one thread per training"),
        "digits of scikit-learn, 1297 images to learn from; two hidden layers of "
        f"{plan['width']} without biases, all three layers sparse; SGD with momentum, "
        f"{plan['epochs']} epochs",
        "accuracy on 500 images in percent, mean ± standard deviation over seeds; EdgePopup trains "
        "no weight, only which take part; source: the random mask inside which the method searches",
    ]
    sparsities = sorted({row["sparsity"] for row in rows})
    table = []
    for method, source in dict.fromkeys((row["method"], row["source"]) for row in rows):
        found: dict[int, list[float]] = {}
        for row in rows:
            if (row["method"], row["source"]) == (method, source):
                found.setdefault(row["sparsity"], []).append(row["accuracy"])
        cells = [spread(found.get(sparsity, []), percent=True) for sparsity in sparsities]
        kept = "all" if source == WHOLE else f"{100 - source} %"
        table.append([Cell(text) for text in (method, kept, *cells)])
    headings = ["method", "source keeps", *(f"{sparsity} %" for sparsity in sparsities)]
    return Page([Grid("Accuracy", headings, table)], lines, f"{len(rows)} trainings")


def _key(row: Row) -> tuple[str, int, int, int]:
    return row["method"], row["source"], row["sparsity"], row["seed"]


def _words(row: Row) -> str:
    who = f"{row['method']} source {row['source']} % to {row['sparsity']} % seed {row['seed']}"
    return f"{who}: {row['accuracy']:.1%}"
