"""Training of a small GPT, dense and sparse side by side: `gossamer train` as a library."""

try:
    from gossamer.train.checkpoint import load_checkpoint, save_checkpoint
    from gossamer.train.config import DEMO, TrainConfig
    from gossamer.train.data import Corpus, Windows, load_corpus, spaced_windows
    from gossamer.train.groups import parameter_groups
    from gossamer.train.metrics import read_metrics
    from gossamer.train.model import GPT, GPTConfig
    from gossamer.train.penalty import PenaltyOptions
    from gossamer.train.plot import plot
    from gossamer.train.report import Summary
    from gossamer.train.resume import resumed_config
    from gossamer.train.run import Run
    from gossamer.train.session import Result, train
    from gossamer.train.spec import RunSpec
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("matplotlib", "rich"):
        raise
    raise ImportError(
        f"gossamer.train needs the package {error.name}; "
        "install the extra packages: pip install 'gossamer[cli]'"
    ) from error

__all__ = [
    "DEMO",
    "GPT",
    "Corpus",
    "GPTConfig",
    "PenaltyOptions",
    "Result",
    "Run",
    "RunSpec",
    "Summary",
    "TrainConfig",
    "Windows",
    "load_checkpoint",
    "load_corpus",
    "parameter_groups",
    "plot",
    "read_metrics",
    "resumed_config",
    "save_checkpoint",
    "spaced_windows",
    "train",
]
