"""Whole models of a library: a training step of GPT-2 small, sparse beside dense."""

from functools import partial

from bench.harness.run import Topic, run_topic
from bench.models.gpt2 import FULL, GROUP, QUICK, jobs
from bench.models.tables import page

TOPIC = Topic(
    "models", (GROUP,), (jobs,), FULL, QUICK, page, lambda _: [], "-models", ("transformers",)
)
run = partial(run_topic, TOPIC)
