"""Training of a small GPT, dense and sparse side by side: `gossamer train` as a library."""

from gossamer.train.checkpoint import load_checkpoint, save_checkpoint
from gossamer.train.compare import Result, resumed_config, train
from gossamer.train.data import Corpus, Windows, load_corpus
from gossamer.train.loop import Run, TrainConfig
from gossamer.train.metrics import read_metrics
from gossamer.train.model import GPT, GPTConfig
from gossamer.train.plot import plot
from gossamer.train.report import Summary

__all__ = [
    "GPT",
    "Corpus",
    "GPTConfig",
    "Result",
    "Run",
    "Summary",
    "TrainConfig",
    "Windows",
    "load_checkpoint",
    "load_corpus",
    "plot",
    "read_metrics",
    "resumed_config",
    "save_checkpoint",
    "train",
]
