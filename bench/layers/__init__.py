"""The verbs, the layer and the train step beside torch's own, masked dense, CSR and SparseProp."""

from contextlib import suppress
from functools import partial

from bench.harness.contest import UnavailableError
from bench.harness.run import Topic, run_topic
from bench.layers import jobs, overhead
from bench.layers.cases import FULL, QUICK
from bench.layers.picture import pictures
from bench.layers.rivals import load_sparseprop
from bench.layers.tables import page


def _warm_up() -> None:
    with suppress(UnavailableError):
        load_sparseprop()


TOPIC = Topic(
    "layers",
    ("calls", "state", "decoding", "train", "layers", "verbs", "bfloat16"),
    (
        overhead.call_jobs,
        overhead.state_jobs,
        jobs.decoding_jobs,
        overhead.train_jobs,
        jobs.case_jobs,
        jobs.half_jobs,
    ),
    FULL,
    QUICK,
    page,
    pictures,
    "",
    ("sparseprop",),
    _warm_up,
)
run = partial(run_topic, TOPIC)
