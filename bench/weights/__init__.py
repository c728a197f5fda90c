"""Modules with weights of their own, attention, recurrent layers and experts, beside dense."""

from functools import partial

from bench.harness.run import Topic, run_topic
from bench.weights.jobs import FULL, GROUP, QUICK, jobs
from bench.weights.tables import page

TOPIC = Topic(
    "weights", (GROUP,), (jobs,), FULL, QUICK, page, lambda _: [], "-weights", ("transformers",)
)
run = partial(run_topic, TOPIC)
