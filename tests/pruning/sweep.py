"""Prune torchvision's classification models, with random weights, to half of their operations.

    python tests/pruning/sweep.py [--keep 0.5] [--least 75] [NAME ...]

For each model: its share of operations and parameters afterwards, how many notes say what stays,
and the seconds. `prune` itself compares the smaller model with the pruned one; here another batch
goes through both. torchvision must be installed; the largest models need 12 GB.
"""

import argparse
import gc
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import gossamer
from support.torchvision_models import image_size, imported


def pruned(models: Any, name: str, keep: float) -> str:
    """Prune one model and return a line about it.

    Raises:
        AssertionError: the budget is exceeded, or the smaller model does not run.
    """
    torch.manual_seed(0)
    began = time.monotonic()
    model = models.get_model(name, weights=None)
    size = image_size(name)
    smaller, report = gossamer.prune(model, torch.randn(1, 3, size, size), keep, report=True)
    (before, after), (whole, part) = report.flops, report.parameters
    assert after <= keep * before, "more operations than the budget"
    with torch.no_grad():
        output = smaller.eval()(torch.randn(2, 3, size, size))
    assert output.shape == (2, 1000), "another output"
    assert bool(output.isfinite().all()), "not finite"
    seconds = time.monotonic() - began
    return f"{after / before:10.4f} {part / whole:10.4f} {len(report.notes):5} {seconds:7.0f}"


def main() -> int:
    """Prune all models, or the named ones; return 1 if too few become smaller."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models, default all")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the operations")
    parser.add_argument("--least", type=int, default=75, help="how many models must work")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    models = imported()
    if models is None:
        print("torchvision is not installed: pip install torchvision")
        return 1
    names = options.names or models.list_models(module=models)
    works = 0
    print(f"{'model':24} {'operations':>10} {'parameters':>10} {'notes':>5} {'seconds':>7}")
    for name in names:
        try:
            line = pruned(models, name, options.keep)
            works += 1
        except (gossamer.GossamerError, AssertionError) as error:
            line = f"  {type(error).__name__}: {error!s:.200}"
        print(f"{name:24} {line}", flush=True)
        gc.collect()
    print(f"{works} of {len(names)} models")
    return 0 if works >= min(options.least, len(names)) else 1


if __name__ == "__main__":
    sys.exit(main())
