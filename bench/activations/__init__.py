"""Feed-forward networks with few live activations, beside the same network in torch."""

from functools import partial

from bench.activations import jobs
from bench.activations.cases import FULL, QUICK
from bench.activations.tables import page
from bench.harness.run import Topic, run_topic

TOPIC = Topic(
    "activations",
    (jobs.TRAINING, jobs.BLOCK, jobs.DECODING),
    (jobs.training, jobs.block, jobs.decoding),
    FULL,
    QUICK,
    page,
    lambda _: [],
    "-activations",
    (),
)
run = partial(run_topic, TOPIC)
