"""A step of training under a recipe, beside the same step dense and masked dense."""

from functools import partial

from bench.harness.run import Topic, run_topic
from bench.recipes.steps import FULL, GROUP, QUICK, jobs
from bench.recipes.tables import page

TOPIC = Topic("recipes", (GROUP,), (jobs,), FULL, QUICK, page, lambda _: [], "-recipes", ())
run = partial(run_topic, TOPIC)
