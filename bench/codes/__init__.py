"""Top-k and sparse decoding beside torch's topk, embedding_bag, gather and dense products."""

from functools import partial

from bench.codes.kernels import FULL, GROUP, QUICK, jobs, page
from bench.harness.run import Topic, run_topic

TOPIC = Topic("codes", (GROUP,), (jobs,), FULL, QUICK, page, lambda _: [], "-codes", ())
run = partial(run_topic, TOPIC)
