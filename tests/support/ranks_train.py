"""What processes do in the tests of `gossamer train` on several ranks."""

import os
import signal
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gossamer.train import Run, TrainConfig, Windows, load_checkpoint, load_corpus, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.run import CLIP
from support.ranks import error_of


def config(data: str, run: str = "rigl@2:4:v4", **options: Any) -> TrainConfig:
    """Return a small training; masks of recipes move after steps 2, 4 and 6."""
    moves = ("every=2",) if run.startswith("rigl") else ()
    sizes = {"width": 32, "depth": 1, "heads": 2, "context": 16, "batch": 4}
    return TrainConfig(
        runs=(run,), steps=9, data=data, eval_every=3, checkpoint_every=4,
        recipe_options=moves, **(sizes | options),
    )  # fmt: skip


def accumulated(options: TrainConfig, ranks: int) -> dict[str, Tensor]:
    """Train in one process, whose gradients are the means over the shares of the ranks."""
    corpus = load_corpus(options.data, options.level, options.context)
    run = Run(options.runs[0], options, corpus.vocabulary)
    windows = Windows(corpus.train, options.context, options.batch, options.seed)
    for step in range(options.steps):
        inputs, targets = windows.batch(step)
        run.optimizer.zero_grad()
        for x, y in zip(inputs.chunk(ranks), targets.chunk(ranks), strict=True):
            (run.model.loss(x, y) / ranks).backward()
        nn.utils.clip_grad_norm_(run.parameters, CLIP)
        run.optimizer.step()
        run.scheduler.step()
    return {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}


def of_checkpoint(out: Path, run: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_checkpoint(out / CHECKPOINT)["runs"][run]["model"]
    return found


def trainings(rank: int, data: str, folder: str) -> dict[str, Any]:
    """Return what several trainings give."""
    found: dict[str, Any] = {}
    for name, run in {
        "rigl": "rigl@2:4:v4",
        "slope": "slope@2:4",
    }.items():
        out = Path(folder, name)
        result = train(config(data, run), out)
        found[name] = result.step, len(result.summaries)
    found["batch"] = error_of(train, config(data, batch=3), Path(folder, "batch"))
    found["again"] = error_of(train, config(data), Path(folder, "rigl"))
    other = config(data if rank == 0 else str(Path(data).with_name("other.txt")))
    found["text"] = error_of(train, other, Path(folder, "text"))
    return found


def dying(rank: int, data: str, folder: str) -> None:
    """Train, and be killed in the step after the first checkpoint."""
    step, taken = Run.step, 0

    def counted(self: Run, inputs: Tensor, targets: Tensor) -> float:
        nonlocal taken
        taken += 1
        if taken == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, inputs, targets)

    Run.step = counted  # type: ignore[method-assign]
    train(config(data), folder)


def resumed(rank: int, data: str, folder: str) -> int:
    return train(config(data), folder, resume=True).step
