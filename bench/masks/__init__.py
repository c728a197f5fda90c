"""Masks: chosen at every step, beside a copy, eager torch and the optimum; drawn for a layer."""

from functools import partial

from bench.harness.run import Topic, run_topic
from bench.masks import changes, making, selection, tiles
from bench.masks.selection import FULL, QUICK
from bench.masks.tables import page

TOPIC = Topic(
    "masks",
    (selection.GROUP, tiles.GROUP, making.GROUP, changes.GROUP),
    (selection.jobs, tiles.jobs, making.jobs, changes.jobs),
    FULL,
    QUICK,
    page,
    lambda _: [],
    "-masks",
    ("scipy",),
)
run = partial(run_topic, TOPIC)
