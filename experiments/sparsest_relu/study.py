"""The sparsest shallow ReLU networks that pass through given points.

`run` trains one network; `study` trains the set that bench/results/sparsest-relu.md shows.

Reference: Nakhleh & Nowak 2025, "Global minimizers of lp-regularized objectives yield the sparsest
ReLU neural networks" (arXiv 2505.21791).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from experiments.sparsest_relu.exact import minimal_path_norm
from experiments.sparsest_relu.fit import Fit, FitConfig, fit
from experiments.sparsest_relu.picture import label, plot_fits
from experiments.sparsest_relu.points import Points, load_points
from gossamer import DataError

__all__ = ["in_words", "run", "study", "summary"]

INTERPOLATES = 1e-6  # mean squared error below which a network passes through the points
STUDY_DATA = ("peak", "random")
STUDY_NEURONS = {"peak": 80, "random": 100}
# Method, p, epochs, seeds. The paper's own runs have 100,000 epochs.
STUDY_RUNS = (
    ("exact", 0.4, 20_000, 5), ("exact", 0.7, 20_000, 3), ("exact", 1.0, 20_000, 1),
    ("reweighted", 0.4, 60_000, 1), ("reweighted", 0.7, 60_000, 1),
    ("adam", 0.4, 20_000, 1), ("adamw", 0.4, 20_000, 1),
)  # fmt: skip
# What the paper's notebooks print for peak (neurons) and random (non-zeros) after 100,000 epochs.
PAPER = {
    ("peak", "reweighted", 0.4): 3, ("peak", "reweighted", 0.7): 4, ("peak", "adam", 0.4): 57,
    ("peak", "adamw", 0.4): 46, ("random", "reweighted", 0.4): 11,
    ("random", "reweighted", 0.7): 12, ("random", "adam", 0.4): 2100,
    ("random", "adamw", 0.4): 255,
}  # fmt: skip


def run(data: str, config: FitConfig, out: Path) -> dict[str, Any]:
    """Train one network, and write result.json and result.png.

    Args:
        data: as `load_points` takes it.
        config: of the training.
        out: the folder, made if it is missing.

    Returns:
        What stands in result.json, without the history (see `summary`).

    Raises:
        DataError: bad data, a training that diverged, or a folder that cannot be written.
    """
    points = load_points(data)
    _make(out)
    result = fit(points, config)
    numbers = summary(points, result)
    _write(out / "result.json", {**numbers, "history": _history(result)})
    plot_fits([(points, [result])], out / "result.png")
    return numbers


def summary(points: Points, result: Fit) -> dict[str, Any]:
    """The numbers of a run.

    Args:
        points: what it was trained on.
        result: the run.

    Returns:
        ``neurons`` (those with a product ``|v w|`` above 1e-8 with one input, 1e-6 with several),
        ``nonzeros`` (such products), ``mse``, ``refit_mse`` (after least squares on what is not
        zero), ``path_norm``, ``interpolates``; with one input also ``kinks`` and
        ``distinct_kinks`` (place, change of slope; the second with those merged that are within
        0.1 % of the range), ``minimal_path_norm`` and ``minimal_neurons``, found exactly.
    """
    model, last = result.model, result.last
    numbers: dict[str, Any] = {
        "data": points.name,
        **asdict(result.config),
        "neurons_left": last.neurons,
        "nonzeros": last.nonzeros,
        "mse": last.mse,
        "refit_mse": model.refit(),
        "interpolates": last.mse < INTERPOLATES,
        "path_norm": last.path_norm,
        "seconds": result.seconds,
    }
    if points.univariate:
        best = minimal_path_norm(points.x[:, 0].tolist(), points.y.tolist(), result.config.p)
        numbers |= {
            "minimal_path_norm": best.value,
            "minimal_neurons": len(best.knots),
            "kinks": model.kinks(),
            "distinct_kinks": model.distinct_kinks(),
        }
    return numbers


def in_words(numbers: dict[str, Any]) -> str:
    """Say a run's numbers in a line or two, for a terminal.

    Args:
        numbers: of `summary`.

    Returns:
        Text without a newline at its end.
    """
    text = (
        f"{numbers['data']}: {numbers['neurons_left']} neurons, {numbers['nonzeros']} non-zero "
        f"products v w, mean squared error {numbers['mse']:.1e}, path norm "
        f"{numbers['path_norm']:.4f}, {numbers['seconds']:.1f} s"
    )
    if not numbers["interpolates"]:
        text += (
            "\nit does not pass through the points: more epochs, a smaller penalty or a smaller "
            "guard may help"
        )
    if "minimal_path_norm" in numbers:
        text += (
            f"\nthe least path norm through these points is {numbers['minimal_path_norm']:.4f}, "
            f"with {numbers['minimal_neurons']} neurons"
        )
    return text


def study(out: Path, seeds: int | None = None, epochs: int | None = None) -> list[dict[str, Any]]:
    """Train all methods on both data sets; write sparsest-relu.json, .md and .png.

    Args:
        out: the folder, made if it is missing.
        seeds: of every run; None: five with the joint prox at p = 0.4, three at 0.7, else one.
        epochs: of every run; None: 20,000, and 60,000 for the reweighted split.

    Returns:
        The numbers of each run.

    Raises:
        DataError: a folder that cannot be written.
    """
    _make(out)
    numbers, shown = [], []
    for data in STUDY_DATA:
        points, fits = load_points(data), []
        for method, p, length, count in STUDY_RUNS:
            for seed in range(seeds or count):
                result = fit(
                    points,
                    FitConfig(method, p, STUDY_NEURONS[data], epochs or length, seed=seed),
                )
                numbers.append(summary(points, result))
                if seed == 0:
                    fits.append(result)
        shown.append((points, fits))
    history = {
        f"{points.name}: {label(result)}": _history(result)
        for points, fits in shown
        for result in fits
    }
    _write(out / "sparsest-relu.json", {"runs": numbers, "history of seed 0": history})
    plot_fits(shown, out / "sparsest-relu.png")
    (out / "sparsest-relu.md").write_text(_page(numbers), encoding="utf-8")
    return numbers


def _page(numbers: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# The sparsest ReLU networks",
        "",
        "Made by `python -m experiments sparsest-relu --study --out bench/results`, one thread. "
        "`exact` is the "
        "joint proximal step; `reweighted` and `adam` have the paper's constants, `adamw` torch's "
        "weight decay. The paper's numbers are after 100,000 epochs (its p = 1 was never run). A "
        "list is one number per seed. Neurons are counted one by one, as the paper counts them: "
        "those with |v w| above 1e-8 (peak) or 1e-6 (random). `possible` is the least path norm "
        "of any interpolant, found exactly; a run may fall below it by as much as its error "
        "allows. MSE is the worst over the seeds, time the median. The JSON has the kinks, those "
        "merged that coincide, and the error after a least-squares fit of what is left.",
        "",
        "`peak` is x = -2 .. 3, y = (0, 0, 1, 1, 0, 0): no network with fewer than 3 neurons "
        "passes through it. `random` is 10 Gaussian points in 50 dimensions: with probability 1 "
        "none with fewer than 10 non-zero v w does, because 10 values need 10 free numbers.",
        "",
    ]
    for data in STUDY_DATA:
        mine = [n for n in numbers if n["data"] == data]
        lines += [
            f"## {data}",
            "",
            "| method | p | epochs | neurons | non-zeros | paper | MSE | path norm, least | "
            "possible | s per run |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for key in dict.fromkeys((n["method"], n["p"], n["epochs"]) for n in mine):
            runs = [n for n in mine if (n["method"], n["p"], n["epochs"]) == key]
            method, p, epochs = key
            penalised = not method.startswith("adam")
            paper = PAPER.get((data, method, p))
            least = min(n["path_norm"] for n in runs)
            possible = runs[0].get("minimal_path_norm")
            lines.append(
                f"| {method} | {p if penalised else '–'} | {epochs:,} "
                f"| {_each(n['neurons_left'] for n in runs)} "
                f"| {_each(n['nonzeros'] for n in runs)} | {'–' if paper is None else paper} "
                f"| {max(n['mse'] for n in runs):.0e} | {f'{least:.4f}' if penalised else '–'} "
                f"| {f'{possible:.4f}' if penalised and possible else '–'} "
                f"| {median(n['seconds'] for n in runs):.1f} |"
            )
        lines.append("")
    lines += ["![what was learned, and what remains against epochs](sparsest-relu.png)", ""]
    return "\n".join(lines)


def _each(values: Any) -> str:
    return ", ".join(map(str, values))


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}; choose another --out") from error


def _history(result: Fit) -> list[list[float]]:
    """Epoch, neurons, non-zeros, error and path norm, to the digits that a picture shows."""
    return [[*row[:3], *(float(f"{value:.4g}") for value in row[3:])] for row in result.rows]


def _write(path: Path, content: dict[str, Any]) -> None:
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
