"""Entropic transport beside POT, regot, geomloss and ott-jax, each in a process of its own."""

from functools import partial

from bench.harness.run import Topic, run_topic
from bench.transport.cases import FULL, QUICK
from bench.transport.pictures import pictures
from bench.transport.session import GROUP, transport_jobs
from bench.transport.tables import DISTRIBUTIONS, page

TOPIC = Topic(
    "transport",
    (GROUP,),
    (transport_jobs,),
    FULL,
    QUICK,
    page,
    pictures,
    "-transport",
    DISTRIBUTIONS,
)
run = partial(run_topic, TOPIC)
