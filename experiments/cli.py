"""The front door of the experiments: `python -m experiments NAME`, from the root of a checkout.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.harness.front import new_app

Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Drop what the folder holds.")]
Quick = Annotated[bool, typer.Option("--quick", help="As little as shows that it works.")]

app = new_app("Experiments on real data; each writes a page, a picture and its numbers.")


@app.command()
def digits(
    out: Out = Path("runs", "structured-digits"),
    quick: Quick = False,
    resume: Annotated[bool, typer.Option("--resume", help="Train only what is missing.")] = False,
) -> None:
    """Structured sparsity on scikit-learn's digits: WGSEF beside its rivals."""
    from experiments.digits.study import run

    if status := run(out, quick, resume, Console()):
        raise typer.Exit(status)


@app.command()
def autoencoders(
    out: Out = Path("runs", "autoencoders"),
    quick: Quick = False,
) -> None:
    """Sparse autoencoders on the activations of a small GPT."""
    from experiments.autoencoders.study import QUICK, run

    run(out, QUICK if quick else None)
    typer.echo(f"sparse-autoencoders.md, .json and .png are in {out}")


@app.command()
def sparsest_relu(
    data: Annotated[
        str, typer.Option(help="peak, sine, random, random:SEED, or a CSV file: inputs, value.")
    ] = "peak",
    method: Annotated[str, typer.Option(help="exact, reweighted, adam or adamw.")] = "exact",
    p: Annotated[float, typer.Option(help="Of the path norm, in (0, 1].")] = 0.4,
    neurons: Annotated[int, typer.Option(help="At the start.")] = 80,
    epochs: Annotated[int, typer.Option(help="Steps, each on all points.")] = 20_000,
    lr: Annotated[float, typer.Option(help="Of Adam.")] = 0.01,
    penalty: Annotated[
        float | None, typer.Option(help="Weight of the path norm; default: the method's own.")
    ] = None,
    guard: Annotated[
        float, typer.Option(help="Error over variance at which exact pauses its penalty.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
    out: Out = Path("runs", "sparsest-relu"),
    study: Annotated[
        bool, typer.Option("--study", help="All methods on peak and random: a table, a picture.")
    ] = False,
) -> None:
    """Find the sparsest ReLU network through given points, by the lp path norm."""
    from experiments.sparsest_relu import study as experiment
    from experiments.sparsest_relu.fit import FitConfig

    if study:
        experiment.study(out)
        typer.echo(f"sparsest-relu.md, .json and .png are in {out}")
        return
    config = FitConfig(method, p, neurons, epochs, lr, penalty, guard, seed)
    typer.echo(experiment.in_words(experiment.run(data, config, out)))
    typer.echo(f"result.json and result.png are in {out}")


@app.command()
def transport(
    uses: Annotated[
        list[str] | None, typer.Argument(help="digits, colours, points, plans; default: all.")
    ] = None,
    out: Out = Path("runs", "transport"),
    quick: Quick = False,
) -> None:
    """Optimal transport at work: a picture and a few numbers for each use."""
    from experiments.transport.uses import run

    for name, numbers in run(out, uses or (), quick).items():
        typer.echo(f"{name}: {numbers}")
    typer.echo(f"pictures and uses.json are in {out}")


@app.command()
def compare_recipes(
    steps: Annotated[int, typer.Option(help="Of each training.")] = 600,
    seeds: Annotated[int, typer.Option(help="Trainings of each recipe and density.")] = 2,
    densities: Annotated[str, typer.Option(help="Percent that are dropped.")] = "50,75,90",
    recipes: Annotated[str | None, typer.Option(help="Names, with commas; default: all.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="File or folder of text; default: Python's own library.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trainings at a time, one thread each.")] = 2,
    rates: Annotated[
        str, typer.Option(help="Peak learning rates that each recipe may choose from.")
    ] = "0.0015,0.003,0.006",
    tune_steps: Annotated[int, typer.Option(help="Of a training that chooses a rate.")] = 150,
    times: Annotated[
        bool, typer.Option("--times/--no-times", help="Time the steps, with nothing else running.")
    ] = True,
    out: Out = Path("runs", "compare-recipes"),
    overwrite: Overwrite = False,
) -> None:
    """Train by every recipe, side by side: one table; the same command continues it."""
    from experiments.compare_recipes.study import compare, numbers
    from experiments.compare_recipes.training import PLAN

    plan = replace(PLAN, steps=steps, data=None if data is None else str(data.resolve()))
    code = compare(
        out,
        plan,
        recipes=[] if recipes is None else recipes.split(","),
        sparsities=[int(percent) for percent in numbers(densities, "densities")],
        seeds=seeds,
        jobs=jobs,
        rates=numbers(rates, "rates"),
        tune_steps=tune_steps,
        times=times,
        overwrite=overwrite,
    )
    if code:
        raise typer.Exit(code)


Seeds = Annotated[int, typer.Option(help="Trainings of each, from seed 0.")]
Jobs = Annotated[int, typer.Option(help="Trainings at a time, one thread each.")]
Steps = Annotated[int, typer.Option(help="Of each training.")]
Times = Annotated[bool, typer.Option("--times", help="Time a step too, with nothing else running.")]


def _end(code: int) -> None:
    if code:
        raise typer.Exit(code)


@app.command()
def learning_rate(
    steps: Steps = 300,
    seeds: Seeds = 2,
    jobs: Jobs = 1,
    out: Out = Path("runs", "learning-rate"),
    overwrite: Overwrite = False,
) -> None:
    """How the learning rate of a sparse layer should follow its density."""
    from experiments.learning_rate.study import study
    from experiments.learning_rate.training import PLAN

    plan = replace(PLAN, steps=steps)
    _end(study(out, plan, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def width_cost(
    steps: Steps = 800,
    seeds: Seeds = 2,
    jobs: Jobs = 1,
    out: Out = Path("runs", "width-cost"),
    overwrite: Overwrite = False,
) -> None:
    """What rows that share their columns, and whole blocks, cost in accuracy."""
    from experiments.width_cost.study import study
    from experiments.width_cost.training import Plan

    _end(study(out, Plan(steps=steps), seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def sparse_tuning(
    seeds: Annotated[int, typer.Option(help="Dense models, from seed 0.")] = 2,
    jobs: Jobs = 1,
    out: Out = Path("runs", "sparse-tuning"),
    overwrite: Overwrite = False,
) -> None:
    """What a pruned model regains by full tuning, SPP and masked LoRA."""
    from experiments.sparse_tuning.study import study

    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def subset_rl(
    jobs: Jobs = 1,
    out: Out = Path("runs", "subset-rl"),
    overwrite: Overwrite = False,
) -> None:
    """Which entries reinforcement learning moves, and whether they alone suffice."""
    from experiments.subset_rl.study import study

    _end(study(out, jobs=jobs, overwrite=overwrite))


@app.command()
def forgetting(
    seeds: Annotated[int, typer.Option(help="Networks, from seed 0.")] = 5,
    jobs: Jobs = 1,
    out: Out = Path("runs", "forgetting"),
    overwrite: Overwrite = False,
) -> None:
    """Forget two classes of digits by adapters of which whole blocks become zero."""
    from experiments.forgetting.study import study

    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def label_noise(
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 5,
    jobs: Jobs = 1,
    out: Out = Path("runs", "label-noise"),
    overwrite: Overwrite = False,
) -> None:
    """Sharpness-aware training on the digits with wrong labels, dense and sparse."""
    from experiments.label_noise.study import study

    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def sharp_pruning(
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 5,
    jobs: Jobs = 1,
    out: Out = Path("runs", "sharp-pruning"),
    overwrite: Overwrite = False,
) -> None:
    """Sharpness-aware training before whole rows are removed."""
    from experiments.label_noise.pruning import study

    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def row_groups(
    seeds: Annotated[int, typer.Option(help="Dense models, from seed 0.")] = 2,
    jobs: Jobs = 1,
    times: Annotated[
        bool, typer.Option("--times", help="Measure what the order costs a layer instead.")
    ] = False,
    out: Out = Path("runs", "row-groups"),
    overwrite: Overwrite = False,
) -> None:
    """What rows grouped by similarity keep when V of them share their columns."""
    from experiments.row_groups.study import study
    from experiments.row_groups.times import times as measure

    if times:
        typer.echo(measure(out).read_text())
        return
    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def update_costs(
    out: Out = Path("runs", "update-costs"),
) -> None:
    """What steps of Muon on sparse weights cost, in steps of the dense layer."""
    from experiments.update_costs.study import run

    typer.echo(run(out))


@app.command()
def grouped_order(
    out: Out = Path("runs", "grouped-order"),
) -> None:
    """Whether a kernel that uses the order of n:m:g is faster than panels."""
    from experiments.grouped_order.study import run

    typer.echo(run(out).read_text())


@app.command()
def small_transport(
    out: Out = Path("runs", "small-transport"),
) -> None:
    """Many tiny transport problems, beside the same in batched torch."""
    from experiments.small_transport.study import run

    typer.echo(run(out).read_text())


@app.command()
def one_shot_scores(
    seeds: Annotated[int, typer.Option(help="Dense models, from seed 0.")] = 2,
    out: Out = Path("runs", "one-shot-scores"),
    overwrite: Overwrite = False,
) -> None:
    """What cuts of a trained GPT cost, by the score that ranks its weights."""
    from experiments.one_shot_scores.study import study

    _end(study(out, seeds=seeds, overwrite=overwrite))


@app.command()
def synflow_digits(
    seeds: Seeds = 5,
    jobs: Jobs = 1,
    out: Out = Path("runs", "synflow-digits"),
    overwrite: Overwrite = False,
) -> None:
    """Cuts of an untrained LeNet by SynFlow and its rivals, largest scores or draws."""
    from experiments.one_shot_scores.digits import study

    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def strong_tickets(
    seeds: Seeds = 2,
    jobs: Jobs = 1,
    out: Out = Path("runs", "strong-tickets"),
    overwrite: Overwrite = False,
) -> None:
    """Subnetworks of a random network in which no weight is trained, also of a sparse one."""
    from experiments.one_shot_scores.tickets import study

    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def pixelated(
    seeds: Seeds = 2,
    jobs: Jobs = 1,
    times: Annotated[
        bool, typer.Option("--times", help="Measure a training step at width 768 instead.")
    ] = False,
    out: Out = Path("runs", "pixelated"),
    overwrite: Overwrite = False,
) -> None:
    """Flat block butterflies with low rank beside random blocks and dense: loss, or time."""
    from experiments.pixelated.study import study
    from experiments.pixelated.times import times as measure

    if times:
        typer.echo(measure(out).read_text())
        return
    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def one_cut(
    steps: Steps = 600,
    seeds: Seeds = 2,
    jobs: Jobs = 1,
    times: Times = False,
    out: Out = Path("runs", "one-cut"),
    overwrite: Overwrite = False,
) -> None:
    """What one cut costs a small GPT that was trained by AdamW, or by CrAM+."""
    from experiments.one_cut.study import study
    from experiments.one_cut.training import PLAN

    plan = replace(PLAN, steps=steps)
    _end(study(out, plan, seeds=seeds, jobs=jobs, times=times, overwrite=overwrite))


@app.command()
def sparse_soups(
    seeds: Annotated[int, typer.Option(help="Runs of each method.")] = 3,
    jobs: Jobs = 1,
    out: Out = Path("runs", "sparse-soups"),
    overwrite: Overwrite = False,
) -> None:
    """Sparse Model Soups beside their copies, SWAMP beside IMP and an ensemble."""
    from experiments.sparse_soups.study import study

    _end(study(out, seeds=seeds, jobs=jobs, overwrite=overwrite))


@app.command()
def balancing_act(
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 5,
    jobs: Jobs = 1,
    times: Times = False,
    out: Out = Path("runs", "balancing-act"),
    overwrite: Overwrite = False,
) -> None:
    """Constraints on what pruning costs each class of the digits."""
    from experiments.balancing_act.study import study

    _end(study(out, seeds=seeds, jobs=jobs, times=times, overwrite=overwrite))
