"""The steps that each run gets in the same time, from a measurement of a few steps of each.

The plan is made once, before the first step, and saved with the configuration: from then on nothing
depends on the clock, so a resumed run is bit-equal to an uninterrupted one. The seconds that the
runs then take differ from the plan where the machine's load changes; their clocks tell.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from torch import Tensor

from gossamer.timing import rotation
from gossamer.train.activations import lower_gates, mean_seconds
from gossamer.train.config import TrainConfig
from gossamer.train.data import Corpus, Windows
from gossamer.train.run import Run
from gossamer.train.spec import DENSE

PROBES = 7  # steps of each run that are measured
WARM = 2  # of these, not counted


def planned(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """Return the configuration with the steps of each run.

    Args:
        config: a configuration with `equal_seconds` and without `run_steps`.
        corpus: text of the training.
    """
    seconds = _step_seconds(config, corpus)
    if config.seconds is None:
        reference = DENSE if DENSE in config.runs else config.runs[0]
        budget = config.steps * seconds[reference]
    else:
        budget = config.seconds
    steps = tuple(max(1, round(budget / seconds[name])) for name in config.runs)
    return replace(config, run_steps=steps)


def _step_seconds(config: TrainConfig, corpus: Corpus) -> dict[str, float]:
    """Measure the mean time of a step of each run, on models that are thrown away."""
    windows = Windows(corpus.train, config.context, config.batch, config.seed)
    batches = [windows.batch(i) for i in range(PROBES)]
    runs = {name: Run(name, config, corpus.vocabulary) for name in config.runs}
    medians = _medians(runs, batches)
    sparse = {name: run for name, run in runs.items() if run.activations is not None}
    firsts = {
        name: (run.activations.live_share, medians[name])
        for name, run in sparse.items()
        if run.activations is not None
    }
    for run in sparse.values():
        lower_gates(run.model, batches[0][0], config.target_share)
    lasts = _medians(sparse, batches)
    for name, run in sparse.items():
        if run.activations is not None:
            medians[name] = mean_seconds(run.activations, firsts[name], lasts[name])
    return medians


def _medians(runs: dict[str, Run], batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the median time of a step of each run; the runs take turns."""
    for i, batch in enumerate(batches):
        for name in rotation(tuple(runs), i):
            runs[name].step(*batch)
    counted = len(batches) - WARM
    return {name: statistics.median(run.step_seconds[-counted:]) for name, run in runs.items()}
