"""The commands of `gossamer`: info, profile, essential, train; they need `gossamer[cli]`.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from gossamer.errors import GossamerError

INTERRUPTED = 130
DEMO_PLAN = (
    "Demo: trains three small GPTs side by side, dense, 2:4:v4 and 90% sparse, on the source of "
    "Python's\nstandard library. 500 steps each; about 5 minutes on 2 cores. Results: {folder}"
)

app = typer.Typer(
    help="Gossamer: train networks that are sparse from the first step to the last.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def run() -> None:
    """Run the command line; errors that Gossamer raises on purpose end it with one line."""
    try:
        app()
    except GossamerError as error:
        what = str(error).encode("utf-8", "replace").decode()
        if os.environ.get("RANK", "0") != "0":
            sys.exit(1)  # of several processes the first one says it
        said = Text.assemble(("error:", "bold red"), " ", what)
        Console(stderr=True).print(said, soft_wrap=True)
        sys.exit(1)


@app.command()
def info() -> None:
    """Print the version, the instruction sets, the threads and which kernel serves what."""
    from gossamer.about import about

    typer.echo(about())


@app.command()
def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="module:function or file.py:function that returns the model and an example: a "
            "tensor, a tuple of arguments or a dict of keyword arguments."
        ),
    ],
    pattern: Annotated[
        list[str] | None,
        typer.Option(help="Pattern to time; repeatable. Default: 2:4:v4, 1:4:v4 and 90%."),
    ] = None,
    forward_only: Annotated[
        bool, typer.Option("--forward-only", help="Inference: no backward pass.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16 (autocast).")] = "float32",
    threads: Annotated[
        int | None, typer.Option(help="Number of threads; default: torch's choice.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measured calls of each layer.")] = 7,
    picture: Annotated[Path | None, typer.Option(help="PNG file to draw.")] = None,
) -> None:
    """Time the linear layers of a model, dense and sparse: which gain, which should stay dense."""
    from gossamer.profiling import command

    found = command.run(
        model, pattern, forward_only=forward_only, dtype=dtype, threads=threads, rounds=rounds
    )
    typer.echo(str(found))
    if picture is not None:
        command.draw(found, picture)
        typer.echo(f"picture: {picture}")


@app.command()
def essential(
    model: Annotated[
        str,
        typer.Argument(
            help="module:function or file.py:function that returns the model and a function of it "
            "that returns one number: a loss, or an accuracy with a minus."
        ),
    ],
    pattern: Annotated[
        list[str] | None,
        typer.Option(help="Pattern to cut by too; repeatable. Default: 2:4 and 1:4."),
    ] = None,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Also cut each layer alone.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="How much worse than dense the knee may be, as a share of it.")
    ] = 0.01,
    threads: Annotated[
        int | None, typer.Option(help="Number of threads; default: torch's choice.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file to draw.")] = None,
) -> None:
    """Cut a trained model at once, more and more: where its essential sparsity ends."""
    from gossamer import pruning
    from gossamer.profiling import command
    from gossamer.timing import threads as threads_of

    dense, evaluate = command.load_evaluated(model)
    patterns = pruning.PATTERNS if pattern is None else pattern
    with threads_of(threads):
        found = pruning.essential(
            dense, evaluate, patterns=patterns, tolerance=tolerance, by_layer=by_layer
        )
    typer.echo(str(found))
    if picture is not None:
        command.draw(found, picture)
        typer.echo(f"picture: {picture}")


@app.command()
def train(
    pattern: Annotated[
        str | None, typer.Option(help='"dense", "2:4", "2:4:v4", "90%", "block 16x16 75%" …')
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Several runs, side by side: dense,2:4:v4,rigl@90%, dense+topk, dense+activations."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe that moves the mask: slope, srste, rigl … with --pattern."),
    ] = None,
    recipe_option: Annotated[
        list[str] | None, typer.Option(help="Option of the recipe: adapter_rank=16; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob on names of modules that stay dense; repeatable.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps per run.")] = None,
    equal_seconds: Annotated[
        bool | None,
        typer.Option(
            "--equal-seconds", help="The same time for each run: that of --steps dense steps."
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of each run, instead; implies --equal-seconds.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Windows per step.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the model.")] = None,
    depth: Annotated[int | None, typer.Option(help="Number of blocks.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads per block.")] = None,
    experts: Annotated[
        int | None, typer.Option(help="MLPs per block, in runs named …+topk or …+sinkhorn.")
    ] = None,
    gated: Annotated[
        bool | None, typer.Option("--gated", help="MLPs with a SiLU gate instead of a GELU.")
    ] = None,
    target_share: Annotated[
        float | None,
        typer.Option(help="Share of live activations, in runs named …+activations."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    scale_lr: Annotated[
        float | None,
        typer.Option(help="Exponent e: a sparse weight learns at the rate lr * density^-e."),
    ] = None,
    penalty: Annotated[
        str | None,
        typer.Option(help="Penalty on the linear layers, by ProxAdamW: l1, lp, mcp, wgsef …"),
    ] = None,
    lam: Annotated[float | None, typer.Option(help="Strength of the penalty.")] = None,
    k: Annotated[
        str | None,
        typer.Option(help="Budget of wgsef: a number of groups, or a share such as 25%."),
    ] = None,
    p: Annotated[float | None, typer.Option(help="Exponent of lp.")] = None,
    penalty_groups: Annotated[
        str | None,
        typer.Option(help="Groups of the penalty: element, neuron, input, block(4, 4) …"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the weights and of the data order.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Number of threads; default: torch's choice.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16 (autocast).")] = None,
    level: Annotated[str | None, typer.Option(help="Kind of token: byte or char.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="File or folder of text; default: Python's own library.")
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; 0: only at the end.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; default: runs/train or runs/demo.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Preset: dense beside sparse, about 5 minutes on 2 cores."),
    ] = False,
) -> None:
    """Train a GPT on real text, dense, sparse, or several side by side."""
    if pattern is not None and compare is not None:
        raise typer.BadParameter("give --pattern or --compare, not both")
    if recipe is not None and compare is not None:
        raise typer.BadParameter("give --recipe or --compare dense,recipe@pattern, not both")
    if resume and overwrite:
        raise typer.BadParameter("give --resume or --overwrite, not both")
    folder = out or Path("runs", "demo" if demo else "train")
    if demo and not resume and os.environ.get("RANK", "0") == "0":
        typer.echo(DEMO_PLAN.format(folder=folder))  # at once: the imports below take seconds
    from gossamer.train import DEMO, TrainConfig, ranks, resumed_config
    from gossamer.train import train as run_training

    runs = compare.split(",") if compare is not None else None if pattern is None else [pattern]
    if recipe is not None:
        runs = [recipe if pattern is None else f"{recipe}@{pattern}"]
    given: dict[str, Any] = {
        "runs": runs and tuple(runs), "exclude": tuple(exclude) if exclude else None,
        "steps": steps, "equal_seconds": True if seconds is not None else equal_seconds,
        "seconds": seconds, "batch": batch, "context": context, "width": width, "depth": depth,
        "heads": heads, "experts": experts, "gated": gated, "target_share": target_share,
        "lr": lr, "scale_lr": scale_lr,
        "penalty": penalty, "lam": lam, "k": k, "p": p, "penalty_groups": penalty_groups,
        "recipe_options": tuple(recipe_option) if recipe_option else None, "seed": seed,
        "threads": threads, "dtype": dtype, "level": level,
        "data": None if data is None else os.path.realpath(data),
        "eval_every": eval_every, "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    wanted = {name: value for name, value in given.items() if value is not None}
    with ranks.connected():
        if resume:
            config = resumed_config(folder, **wanted)
        else:
            config = (DEMO if demo else TrainConfig()).with_options(**wanted)
        result = run_training(config, folder, resume=resume, overwrite=overwrite)
        first = ranks.is_first()
    if result.output_error is not None:
        sys.exit(f"error: standard output cannot be written: {result.output_error}")
    if result.interrupted:
        if not first:
            raise typer.Exit(INTERRUPTED)
        typer.echo(
            f"stopped after step {result.step} of {result.steps}; continue with: "
            f"gossamer train --resume --out {folder}"
        )
        raise typer.Exit(INTERRUPTED)
