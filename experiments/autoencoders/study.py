"""Sparse autoencoders on real activations: TopK, HierarchicalTopK and ReLU with an l1 penalty.

A small GPT is trained briefly on the source of Python's standard library; autoencoders are trained
on its residual stream after the first block. Measured are the explained variance on held-out text
against the number of active latents, the share of dead latents, and the kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.codes import kernels
from bench.harness.machine import commit, facts
from bench.harness.plan import Plan
from bench.harness.record import Record
from bench.harness.results import write_json, write_text
from bench.harness.tables import pyplot
from gossamer.codes import Code, TopKAutoencoder, decode, explained_variance
from gossamer.train import GPT, GPTConfig, Windows, load_corpus, spaced_windows


@dataclass(frozen=True)
class Scope:
    """How much is trained.

    Args:
        width: of the GPT, and features of the autoencoders.
        gpt_steps: optimizer steps of the GPT.
        rows: activations to train on.
        held_out: activations to measure on.
        n: latents.
        levels: active latents at which is measured; the last one is k.
        steps: optimizer steps of each autoencoder.
        batch: rows per step.
        lr: peak learning rate of the autoencoders, falling to 0 in the last fifth.
        l1: strengths of the l1 penalty.
        seeds: autoencoders of each kind.
        sizes: of the measured kernels.
        rounds: of each measurement.
    """

    width: int = 128
    gpt_steps: int = 60
    rows: int = 65536
    held_out: int = 8192
    n: int = 1024
    levels: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    steps: int = 200
    batch: int = 1024
    lr: float = 2e-3
    l1: tuple[float, ...] = (0.002, 0.01, 0.05)
    seeds: int = 1
    sizes: kernels.Sizes = field(default_factory=kernels.Sizes)
    rounds: int = 5


QUICK = Scope(
    width=32, gpt_steps=2, rows=512, held_out=128, n=64, levels=(1, 4), steps=4, batch=64,
    l1=(0.01,), seeds=1, sizes=kernels.Sizes(8, 32, 256, 4), rounds=1,
)  # fmt: skip

TOPK, HIERARCHICAL, L1 = "TopK", "HierarchicalTopK", "ReLU + l1"


@dataclass(frozen=True)
class Point:
    """One autoencoder at one number of active latents.

    Args:
        method: how it was trained.
        setting: with what: k, or the strength of the penalty.
        seed: of its start and the order of its data.
        active: latents active per row, the mean over rows.
        explained: share of the held-out variance.
        dead: share of latents that no training row activates.
    """

    method: str
    setting: str
    seed: int
    active: float
    explained: float
    dead: float


class ReluAutoencoder(nn.Module):
    """z = ReLU(W_enc (x - b_pre) + b_lat), x^ = z W_dec + b_pre, with an l1 penalty on z."""

    def __init__(self, start: TopKAutoencoder, l1: float) -> None:
        super().__init__()
        self.inner, self.l1 = start, l1

    def codes(self, x: Tensor) -> Tensor:
        """All latents [batch, n]."""
        own = self.inner
        return torch.relu((x - own.pre_bias) @ own.encoder.T + own.latent_bias)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction."""
        return self.codes(x) @ self.inner.decoder + self.inner.pre_bias

    def loss(self, x: Tensor) -> Tensor:
        """Scaled mean squared error plus l1 times the mean sum of z."""
        z = self.codes(x)
        error = x - z @ self.inner.decoder - self.inner.pre_bias
        scale = self.inner.input_variance
        return error.square().mean() / scale + self.l1 * z.sum(1).mean() / scale.sqrt()


def activations(scope: Scope) -> tuple[Tensor, Tensor, float]:
    """Train the GPT and collect its residual stream.

    Args:
        scope: how much.

    Returns:
        Rows to train on, rows held out (of other files), and the last training loss of the GPT.
    """
    torch.manual_seed(0)
    context = 64
    corpus = load_corpus(context=context)
    model = GPT(GPTConfig(corpus.vocabulary, context, scope.width, depth=2, heads=4))
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3)
    windows = Windows(corpus.train, context, batch=16, seed=0)
    loss = torch.zeros(())
    for step in range(scope.gpt_steps):
        adam.zero_grad()
        loss = model.loss(*windows.batch(step))
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()

    @torch.no_grad()
    def stream(tokens: Tensor, rows: int) -> Tensor:
        found = []
        inputs, _ = spaced_windows(tokens, context, -(-rows // context))
        for part in torch.split(inputs, 128):
            x = model.tokens(part) + model.positions.weight[: part.shape[1]]
            found.append(model.blocks[0](x).reshape(-1, scope.width))
        return torch.cat(found)[:rows]

    train = stream(corpus.train, scope.rows)
    return train, stream(corpus.validation, scope.held_out), float(loss.detach())


def fit(
    model: TopKAutoencoder, loss: Callable[[Tensor], Tensor], data: Tensor, scope: Scope, seed: int
) -> None:
    """Train with the recipe's optimizer, shuffled by the seed."""
    random = torch.Generator().manual_seed(seed)
    adam = model.adam(lr=scope.lr)
    decay = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1.0, 5.0 * (1.0 - step / scope.steps))
    )
    for _ in range(scope.steps):
        rows = torch.randint(len(data), (scope.batch,), generator=random)
        adam.zero_grad()
        loss(data[rows]).backward()  # type: ignore[no-untyped-call]
        model.project_gradient_()
        adam.step()
        decay.step()
        model.normalise_()


def fresh(data: Tensor, scope: Scope, k: int, seed: int, **options: Any) -> TopKAutoencoder:
    """An autoencoder at its start; a latent is dead after 20 steps without activity."""
    torch.manual_seed(seed)
    d, dead_tokens = data.shape[1], 20 * scope.batch
    # As many dead latents explain a residual as the paper found enough: half the features.
    model = TopKAutoencoder(d, scope.n, k, aux_k=d // 2, dead_tokens=dead_tokens, **options)
    model.start_from(data[: 4 * scope.batch])
    return model


@torch.no_grad()
def truncated(model: TopKAutoencoder, x: Tensor, k: int) -> tuple[Tensor, float]:
    """The reconstruction from the k largest latents, and how many of them are above 0."""
    code = model.encode(x)
    first = Code(code.values[:, :k].contiguous(), code.indices[:, :k].contiguous())
    return decode(first, model.decoder, model.pre_bias), float(
        (first.values > 0).sum(1).double().mean()
    )


@torch.no_grad()
def dead_share(active: Callable[[Tensor], Tensor], data: Tensor) -> float:
    """Share of latents that no row activates; ``active`` gives a bool [n] for a batch."""
    seen = torch.stack([active(part) for part in torch.split(data, 4096)]).any(0)
    return 1.0 - float(seen.double().mean())


def named(model: TopKAutoencoder) -> Callable[[Tensor], Tensor]:
    """Which latents a batch activates."""

    def active(x: Tensor) -> Tensor:
        code = model.encode(x)
        seen = torch.zeros(len(model.encoder), dtype=torch.bool)
        seen[code.indices[code.values > 0]] = True
        return seen

    return active


def compare(train: Tensor, held_out: Tensor, scope: Scope) -> list[Point]:
    """Train every autoencoder and measure it on the rows held out.

    Args:
        train: [rows, d].
        held_out: [rows, d].
        scope: how much.

    Returns:
        A point for each TopK model at its own k; for HierarchicalTopK and the largest TopK model
        one for each level; for each strength of l1 one.
    """
    points = []
    most = scope.levels[-1]
    for seed in range(scope.seeds):
        for k in scope.levels:
            model = fresh(train, scope, k, seed)
            fit(model, lambda x, m=model: m.loss(x).total, train, scope, seed)  # type: ignore[misc]
            dead = dead_share(named(model), train)
            for level in scope.levels if k == most else (k,):
                back, active = truncated(model, held_out, level)
                name = TOPK if level == k else f"{TOPK}, k = {most}, cut"
                points.append(
                    Point(
                        name, f"k={level}", seed, active, explained_variance(held_out, back), dead
                    )
                )
        model = fresh(train, scope, most, seed, levels=scope.levels)
        fit(model, lambda x, m=model: m.loss(x).total, train, scope, seed)  # type: ignore[misc]
        dead = dead_share(named(model), train)
        for level in scope.levels:
            back, active = truncated(model, held_out, level)
            points.append(
                Point(
                    HIERARCHICAL,
                    f"k={level}",
                    seed,
                    active,
                    explained_variance(held_out, back),
                    dead,
                )
            )
        for strength in scope.l1:
            relu = ReluAutoencoder(fresh(train, scope, most, seed), strength)
            fit(relu.inner, relu.loss, train, scope, seed)
            dead = dead_share(lambda x, m=relu: (m.codes(x) > 0).any(0), train)  # type: ignore[misc]
            with torch.no_grad():
                active = float((relu.codes(held_out) > 0).sum(1).double().mean())
                explained = explained_variance(held_out, relu(held_out))
            points.append(Point(L1, f"lambda={strength:g}", seed, active, explained, dead))
    return points


def mean_points(points: list[Point]) -> list[Point]:
    """One point for each method and setting: the mean over seeds (seed -1)."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, point.setting), []).append(point)
    return [
        replace(
            group[0],
            seed=-1,
            active=sum(p.active for p in group) / len(group),
            explained=sum(p.explained for p in group) / len(group),
            dead=sum(p.dead for p in group) / len(group),
        )
        for group in groups.values()
    ]


def plot(points: list[Point], path: Path, scope: Scope) -> None:
    """Unexplained variance against active latents, a line per method; small dots are seeds."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for method in dict.fromkeys(point.method for point in points):
        mine = sorted(
            (p for p in mean_points(points) if p.method == method), key=lambda p: p.active
        )
        style = "--" if "cut" in method else "-"
        (line,) = axis.plot(
            [p.active for p in mine],
            [1 - p.explained for p in mine],
            style,
            marker="o",
            label=method,
        )
        seeds = [p for p in points if p.method == method]
        axis.plot(
            [p.active for p in seeds], [1 - p.explained for p in seeds], ".", color=line.get_color()
        )
    axis.set(
        xscale="log", yscale="log", xlabel="active latents per row", ylabel="unexplained variance",
        title=f"Residual stream of a small GPT: {scope.width} features, {scope.n} latents",
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def page(points: list[Point], records: list[Record], about: dict[str, Any]) -> str:
    """The page of results."""
    lines = [
        "# Sparse autoencoders",
        "",
        f"{about['machine']['cpu']}, {about['machine']['isa']}, commit {about['commit']}; "
        f"{about['seconds']:.0f} s in all. Made by "
        "`python -m experiments autoencoders --out bench/results`.",
        "",
        f"Data: residual stream after the first block of a GPT of width {about['plan']['width']} "
        f"trained {about['plan']['gpt_steps']} steps on the source of Python's standard library "
        f"(loss {about['gpt_loss']:.2f} nats a byte); {about['plan']['rows']} rows to train on, "
        f"{about['plan']['held_out']} rows of other files to measure on. "
        f"{about['plan']['n']} latents, {about['plan']['steps']} steps of "
        f"{about['plan']['batch']} rows, seeds: {about['plan']['seeds']}.",
        "",
        "![unexplained variance against active latents](sparse-autoencoders.png)",
        "",
        "| method | setting | active latents | explained variance | dead latents |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.method} | {p.setting} | {p.active:.1f} | {p.explained:.4f} | {100 * p.dead:.1f} % |"
        for p in mean_points(points)
    ]
    lines += [
        "",
        "TopK is one model for each k; HierarchicalTopK is a single model, cut after its k largest "
        "latents; the rows named *cut* do the same to the plain TopK model with the largest k.",
        "",
        "## Kernels",
        "",
        "float32, {batch} rows, {d} features, {n} latents, {k} active.".format(
            **about["plan"]["sizes"]
        )
        + " The gradient of the dictionary is dense [latents, features] for all: most of its time "
        "is the system handing out that memory.",
        "",
        *kernels.grid(records).markdown(),
        "",
        *kernels.notes(records),
        "",
    ]
    return "\n".join(lines)


def run(out: Path, scope: Scope | None = None) -> list[Point]:
    """Do everything and write ``sparse-autoencoders.{json,md,png}``.

    Args:
        out: folder.
        scope: how much; None for all of it.

    Returns:
        The points.
    """
    scope = scope or Scope()
    start = time.perf_counter()
    train, held_out, loss = activations(scope)
    points = compare(train, held_out, scope)
    records = kernels.measure_all(Plan(scope.sizes, rounds=(scope.rounds, scope.rounds)))
    about = {
        "machine": facts(()),
        "commit": commit(),
        "plan": asdict(scope),
        "gpt_loss": loss,
        "seconds": time.perf_counter() - start,
    }
    stem = out / "sparse-autoencoders"
    result = about | {
        "points": [asdict(p) for p in points],
        "kernels": [asdict(r) for r in records],
    }
    write_json(stem.with_suffix(".json"), result)
    write_text(stem.with_suffix(".md"), page(points, records, about))
    plot(points, stem.with_suffix(".png"), scope)
    return points
