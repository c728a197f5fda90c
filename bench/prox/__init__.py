"""Proximal operators and optimizer steps beside NumPy, eager torch, ModOpt and pyproximal."""

from functools import partial

from bench.harness.run import Topic, run_topic
from bench.prox.cases import FULL, QUICK
from bench.prox.jobs import GROUP, prox_jobs
from bench.prox.picture import pictures
from bench.prox.tables import DISTRIBUTIONS, page

TOPIC = Topic("prox", (GROUP,), (prox_jobs,), FULL, QUICK, page, pictures, "-prox", DISTRIBUTIONS)
run = partial(run_topic, TOPIC)
