"""The contents of a training's checkpoint, and how a training continues from it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.errors import CheckpointError
from gossamer.train.checkpoint import CHECKPOINT, load_checkpoint, restore
from gossamer.train.config import TrainConfig
from gossamer.train.data import Corpus
from gossamer.train.groups import follow_groups
from gossamer.train.metrics import Row
from gossamer.train.ranks import from_first
from gossamer.train.run import Run

# A resumed training may differ in these options: they do not change what is computed.
FREE_ON_RESUME = ("threads", "checkpoint_every")


def resumed_config(out: str | Path, **wanted: Any) -> TrainConfig:
    """Read the configuration of a training that is to be resumed.

    Args:
        out: folder of the training.
        wanted: requested options, as for `TrainConfig.from_options`. Options that do not affect
            the results replace the stored ones; all others must equal them.

    Returns:
        The configuration.

    Raises:
        CheckpointError: there is no valid checkpoint, or a requested option differs from it.
    """
    check(resumed_config, locals())
    path = Path(out) / CHECKPOINT
    stored = _stored_config(path, from_first(lambda: load_checkpoint(path)))
    asked = stored.with_options(**wanted)
    before, after = stored.options(), asked.options()
    for name in wanted:
        if name not in FREE_ON_RESUME and before[name] != after[name]:
            raise CheckpointError(
                f"{path} was trained with {name}={before[name]!r}, asked is {after[name]!r}; "
                "leave the option out to resume, or start a new training with another --out"
            )
    return asked


def training_state(
    config: TrainConfig,
    corpus: Corpus,
    runs: Sequence[Run],
    step: int,
    unwritten: Sequence[Row] = (),
) -> dict[str, Any]:
    """Collect the state of a training for a checkpoint.

    Args:
        config: configuration of the training.
        corpus: text of the training; the checkpoint stores its fingerprint.
        runs: runs of the training.
        step: number of finished steps.
        unwritten: last rows of the metrics, if their file could not be written.

    Returns:
        The state, as `save_checkpoint` takes it.
    """
    return {
        "config": config.options(),
        "corpus": corpus.fingerprint,
        "step": step,
        "rng": torch.get_rng_state(),
        "runs": {run.name: run.state() for run in runs},
        "rows": list(unwritten),
    }


def restore_training(
    path: Path, config: TrainConfig, corpus: Corpus, runs: Sequence[Run]
) -> tuple[int, list[Row]]:
    """Load a checkpoint into new runs.

    Args:
        path: the checkpoint.
        config: configuration of the training; it must equal the stored one, except for
            `FREE_ON_RESUME`.
        corpus: text of the training; it must be the text of the checkpoint.
        runs: new runs; after an error they are not usable.

    Returns:
        The number of finished steps, and the rows of the metrics that their file lacks.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another training.
    """
    state = from_first(lambda: load_checkpoint(path))
    stored = _stored_config(path, state)
    same = {name: getattr(config, name) for name in FREE_ON_RESUME}
    if replace(stored, **same) != config:
        raise CheckpointError(
            f"{path} was trained with other options ({stored}); resume with those, or start a new "
            "training with another --out"
        )
    if state["corpus"] != corpus.fingerprint:
        raise CheckpointError(
            f"{path} was trained on another text than {corpus.name} is now; "
            "restore the text, or start a new training with another --out"
        )
    _restore_runs(runs, state["runs"], path)
    for run in runs:
        seconds: Tensor = state["runs"][run.name]["step_seconds"]
        run.step_seconds, run.seconds = seconds.tolist(), float(seconds.sum())
    torch.set_rng_state(state["rng"])
    return int(state["step"]), list(state.get("rows", []))


def _stored_config(path: Path, state: dict[str, Any]) -> TrainConfig:
    options = state.get("config")
    # Older versions had fewer options; the defaults of newer options give their behaviour.
    if not isinstance(options, dict) or not options.keys() <= TrainConfig().options().keys():
        raise CheckpointError(
            f"{path} has no training options that this version knows; resume with the version "
            "that wrote it"
        )
    return TrainConfig.from_options(**options)


def _restore_runs(runs: Sequence[Run], saved: dict[str, Any], path: Path) -> None:
    """Load the saved runs, recipes first: they may add layers and parameter groups.

    The runs are new, and are discarded if one part does not fit.
    """
    for run in runs:
        if set(saved.get(run.name, {})) != {*run.parts, "step_seconds"}:
            raise CheckpointError(
                f"{path} holds {sorted(saved.get(run.name, {}))} of the run {run.name}, needed are "
                f"{sorted(run.parts)}; resume with the options of the run that wrote it"
            )
    led = [run for run in runs if run.recipe is not None]
    for run in led:
        restore({run.name: run.recipe}, {run.name: saved[run.name]["recipe"]}, path)
    targets, states = {}, {}
    for run in runs:
        follow_groups(run.scheduler)
        for part, target in run.parts.items():
            if part not in ("recipe", "masks"):
                targets[f"{run.name} {part}"] = target
                states[f"{run.name} {part}"] = saved[run.name][part]
    for run in led:
        targets[f"{run.name} masks"] = run.masks
        states[f"{run.name} masks"] = saved[run.name]["masks"]
    restore(targets, states, path, moving={f"{run.name} model" for run in led})
