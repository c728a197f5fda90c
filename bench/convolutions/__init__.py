"""Convolutions: single layers, and a step of a ResNet-18 of CIFAR's size, beside torch's."""

from functools import partial

from bench.convolutions import layers, resnet
from bench.convolutions.cases import FULL, QUICK
from bench.convolutions.tables import page
from bench.harness.run import Topic, run_topic

TOPIC = Topic(
    "convolutions",
    (layers.GROUP, resnet.GROUP),
    (layers.jobs, resnet.jobs),
    FULL,
    QUICK,
    page,
    lambda _: [],
    "-convolutions",
    ("sparseprop",),
)
run = partial(run_topic, TOPIC)
