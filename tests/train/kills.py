"""Kill a training many times at random moments; the outcome must be that of an undisturbed one.

    python tests/train/kills.py [--kills 50] [--seed N]

A training that saves every step is started, killed (SIGKILL) after a random time, and continued
from its last checkpoint, until it has been killed that often. It then runs to its end. Weights,
optimizer, random state and metrics must equal, bit for bit, those of a training that was never
touched; and no file of a killed process may be left.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gossamer.train import Run, TrainConfig, load_checkpoint, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.metrics import METRICS
from gossamer.train.resume import resumed_config
from support.training import QUIET, TEXT, fingerprint

OPTIONS = (
    "--compare", "dense,2:4:v4,rigl@75%", "--batch", "4", "--context", "16", "--width", "32",
    "--depth", "1", "--heads", "2", "--threads", "1", "--data", TEXT, "--eval-every", "50",
)  # fmt: skip


def start(out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gossamer.cli", "train", "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def steps_in(out: Path) -> int:
    """Finished steps in the checkpoint, 0 if there is none."""
    path = out / CHECKPOINT
    return int(load_checkpoint(path)["step"]) if path.exists() else 0


def kill_one(out: Path, options: tuple[str, ...], moments: random.Random) -> None:
    """Start the training, and kill it at a random moment of its first steps or of its start."""
    process = start(out, *options)
    metrics = out / METRICS
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    until = time.monotonic() + 300
    # One kill in ten comes while it starts.
    if moments.random() < 0.9:
        while process.poll() is None and time.monotonic() < until:
            if metrics.exists() and metrics.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.5))
    else:
        time.sleep(moments.uniform(0, 3))
    alive = process.poll() is None
    process.kill()
    _, errors = process.communicate()
    if not alive:
        sys.exit(f"the training ended before it was killed: {errors.decode()[-2000:]}")


def main() -> None:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    given = parser.parse_args()
    print(f"seed {given.seed}")
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder, "killed"), Path(folder, "whole")
        # So many steps that no kill comes too late.
        fresh = (*OPTIONS, "--steps", str(100 * given.kills), "--checkpoint-every", "1")
        for count in range(given.kills):
            resumable = (killed / CHECKPOINT).exists()
            kill_one(killed, ("--resume",) if resumable else (*fresh, "--overwrite"), moments)
            print(f"kill {count + 1}: step {steps_in(killed)} is saved", flush=True)
        # The comparison ends a little after the last saved step.
        config = resumed_config(killed, checkpoint_every=0)
        last = steps_in(killed) + 20
        for out, resume in ((killed, True), (whole, False)):
            _train_until(config, out, last, resume)
        left = sorted(path.name for path in killed.iterdir() if path.suffix == ".tmp")
        if left or fingerprint(killed) != fingerprint(whole):
            sys.exit(f"after {given.kills} kills the outcome is another one; left: {left}")
    print(f"{given.kills} kills: equal to the bit after {last} steps")


def _train_until(config: TrainConfig, out: Path, step: int, resume: bool) -> None:
    """Train, and stop with a signal after that step, as a user would."""
    take = Run.step

    def stopping(run: Run, *batch: object) -> float:
        if len(run.step_seconds) + 1 == step and run.name == "dense":
            signal.raise_signal(signal.SIGTERM)
        return take(run, *batch)

    Run.step = stopping
    try:
        train(config, out, resume=resume, console=QUIET)
    finally:
        Run.step = take


if __name__ == "__main__":
    main()
