import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DataError, DTypeError, GossamerError, PatternError
from gossamer.nn import SparseLinear
from gossamer.train import GPT, GPTConfig, Run, load_checkpoint, read_metrics, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.folder import LOCK
from gossamer.train.metrics import METRICS
from gossamer.train.model import dense_parameters
from gossamer.train.plot import COLOURS, PICTURE, plot
from gossamer.train.run import learning_rate
from support.training import QUIET, TINY

Step = Callable[[Run, Tensor, Tensor], float]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert not train(TINY, out, console=QUIET).interrupted
    return out


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"steps": 0}, ArgumentError, "steps=0"),
        ({"seed": -1}, ArgumentError, "seed=-1; it must be at least 0"),
        ({"threads": 0}, ArgumentError, "threads=0"),
        ({"lr": math.nan}, ArgumentError, "lr=nan"),
        ({"lr": 0.0}, ArgumentError, "lr=0.0"),
        ({"dtype": "float16"}, DTypeError, "'float16'; choose one of .'bfloat16', 'float32'"),
        ({"level": "word"}, DataError, "choose byte or char"),
        ({"runs": ()}, PatternError, "each must be named once"),
        ({"runs": ("2:4", "2 : 4")}, PatternError, "each must be named once"),
        ({"runs": ("dense", "3:2")}, PatternError, "n=3, m=2"),
        ({"runs": ("sparse",)}, PatternError, '"90%".* or "dense"'),
    ],
)
def test_options_are_checked(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(TINY, **change)


def test_the_learning_rate_warms_up_and_falls() -> None:
    for steps in (1, 2, 9, 300):
        factors = [learning_rate(step, steps) for step in range(steps)]
        top = factors.index(max(factors))
        assert max(factors) == 1.0
        assert factors[: top + 1] == sorted(factors[: top + 1])
        assert factors[top:] == sorted(factors[top:], reverse=True)
        assert min(factors) > 0


# ---- training ------------------------------------------------------------------------------------
def test_the_loss_goes_down_on_real_text(tmp_path: Path) -> None:
    config = replace(TINY, steps=60, batch=16, context=32, lr=3e-3, eval_every=60)
    result = train(config, tmp_path, console=QUIET)
    for summary in result.summaries:
        assert summary.val_loss is not None
        assert summary.val_loss < math.log(256) - 2, summary


def test_a_run_writes_metrics_checkpoint_and_picture(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {METRICS, CHECKPOINT, PICTURE, LOCK}
    rows = read_metrics(finished / METRICS)
    assert [(row["step"], row["run"]) for row in rows] == [
        (step, run) for step in range(1, 13) for run in TINY.runs
    ]
    evaluated = {row["step"] for row in rows if row["val_loss"] is not None}
    assert evaluated == {5, 10, 12}
    for run in TINY.runs:
        mine = [row for row in rows if row["run"] == run]
        seconds = [0.0, *(row["seconds"] for row in mine)]
        for row, before, after in zip(mine, seconds, seconds[1:], strict=False):
            assert row["tokens_per_second"] == pytest.approx(64 / (after - before), rel=1e-6)
            assert row["lr"] == pytest.approx(1e-3 * learning_rate(row["step"] - 1, 12))


def test_runs_in_company_compute_what_they_compute_alone(tmp_path: Path, finished: Path) -> None:
    together = [row["loss"] for row in read_metrics(finished / METRICS) if row["run"] == "75%"]
    train(replace(TINY, runs=("75%",)), tmp_path, console=QUIET)
    assert [row["loss"] for row in read_metrics(tmp_path / METRICS)] == together


def test_runs_take_turns_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take: Step = Run.step
    taken: list[tuple[str, int]] = []

    def recorded(run: Run, inputs: Tensor, targets: Tensor) -> float:
        taken.append((run.name, hash(inputs.numpy().tobytes())))
        return take(run, inputs, targets)

    monkeypatch.setattr(Run, "step", recorded)
    train(TINY, tmp_path, console=QUIET)
    rounds = [taken[i : i + 3] for i in range(0, 36, 3)]
    assert all({name for name, _ in turn} == set(TINY.runs) for turn in rounds)
    assert all(len({batch for _, batch in turn}) == 1 for turn in rounds)
    assert len({turn[0][1] for turn in rounds}) == 12
    assert {turn[0][0] for turn in rounds[:3]} == set(TINY.runs)


def test_the_summary_counts_state_density_and_speed(tmp_path: Path) -> None:
    result = train(TINY, tmp_path, console=QUIET)
    dense, half, quarter = result.summaries
    sizes = GPTConfig(256, 16, 32, 2, 2)
    weights = 2 * 12 * 32 * 32
    assert dense.density == 1.0
    assert dense.state_bytes == pytest.approx(16 * dense_parameters(sizes), rel=0.01)
    for summary, share in ((half, 0.5), (quarter, 0.25)):
        expected = 1 - weights * (1 - share) / dense_parameters(sizes)
        assert summary.density == pytest.approx(expected)
        assert summary.state_bytes > expected * dense.state_bytes  # structure counts as well
        assert summary.state_bytes == tensors_of(tmp_path, summary.run)
        assert summary.speedup == dense.step_seconds / summary.step_seconds
        assert summary.tokens_per_second == 64 / summary.step_seconds
    rows = [row for row in read_metrics(tmp_path / METRICS) if row["run"] == "dense"]
    steps = sorted(64 / row["tokens_per_second"] for row in rows)
    assert dense.step_seconds == pytest.approx((steps[5] + steps[6]) / 2)
    alone = train(replace(TINY, runs=("75%",), steps=1), tmp_path, overwrite=True, console=QUIET)
    assert alone.summaries[0].speedup is None


def tensors_of(out: Path, run: str) -> int:
    """Bytes of all that a run keeps, from its checkpoint; gradients are as large as parameters."""

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.nbytes
        return sum(map(size, value.values())) if isinstance(value, dict) else 0

    state = load_checkpoint(out / CHECKPOINT)["runs"][run]
    model = Run(run, TINY, 256).model
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    passing = sum(b.nbytes for n, b in model.named_buffers() if n not in model.state_dict())
    return size(state["model"]) + size(state["optimizer"]["state"]) + gradients + passing


def test_excluded_layers_stay_dense() -> None:
    config = replace(TINY, exclude=("*.attention.*",))
    model = Run("2:4:v4", config, 256).model
    dense = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert dense == {f"blocks.{i}.attention.{name}" for i in (0, 1) for name in ("qkv", "out")}


@pytest.mark.parametrize("run", ["2:4:v4", "75%", "block 16x16 75%"])
def test_sparse_weights_start_with_the_norm_of_the_dense_ones(run: str) -> None:
    dense, sparse = (Run(name, TINY, 256).model for name in ("dense", run))
    for name, module in sparse.named_modules():
        if isinstance(module, SparseLinear):
            expected = dense.get_submodule(name).weight
            got = module.to_dense().weight
            torch.testing.assert_close(got.norm(), expected.norm())
            kept = got != 0
            ratio = (got / expected)[kept]
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
            assert ratio.mean() > 1


def test_a_width_that_does_not_fit_the_pattern_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PatternError):
        train(replace(TINY, runs=("1:64",)), tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_bfloat16_trains(tmp_path: Path) -> None:
    train(replace(TINY, dtype="bfloat16"), tmp_path, console=QUIET)
    rows = read_metrics(tmp_path / METRICS)
    assert all(rows[i]["loss"] > rows[i + 33]["loss"] for i in range(3))


def test_characters_train(tmp_path: Path) -> None:
    result = train(replace(TINY, level="char", runs=("75%",)), tmp_path, console=QUIET)
    assert result.step == 12


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT, "forward", lambda self, x, y: self.tokens.weight.sum() * math.inf)
    with pytest.raises(GossamerError, match="at step 1; training has diverged: lower --lr"):
        train(TINY, tmp_path, console=QUIET)


# ---- picture -------------------------------------------------------------------------------------
def test_the_picture_has_a_curve_for_each_run(tmp_path: Path) -> None:
    rows = [
        {"run": run, "step": step, "loss": 5 - slope * step, "seconds": slope * step,
         "val_loss": 5.1 - slope * step if step % 5 == 0 else None}
        for step in range(1, 21) for run, slope in (("dense", 0.1), ("2:4", 0.15), ("90%", 0.2))
    ]  # fmt: skip
    plot(rows, tmp_path / "loss.png", "title")
    picture = torch.from_numpy(imread(tmp_path / "loss.png")[..., :3].copy())
    middle = picture.shape[1] // 2
    for half in (picture[:, :middle], picture[:, middle:]):
        for colour in COLOURS[:3]:
            near = (half - torch.tensor(to_rgb(colour))).abs().amax(-1) < 0.02
            assert near.sum() > 200, colour
    plot(rows[:3], tmp_path / "short.png")
    assert (tmp_path / "short.png").stat().st_size > 1000
