"""A step of training under a recipe beside the same step dense, on the demo's GPT.

    python -m gossamer.bench.recipes_bench [--rounds 15] [--threads 2] [--out bench/results]

SR-STE is measured against its masked-dense twin: the same formulas with torch alone, whose weight
is masked before a dense product. A step is loss, gradients, clipping, and AdamW with the recipe's
own work. All take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.bench.cases import SEED
from gossamer.bench.machine import commit, facts, honest_notes
from gossamer.bench.upkeep import VOCABULARY, state_bytes
from gossamer.patterns import NM
from gossamer.recipes import SRSTE, Recipe
from gossamer.recipes.slope import SLoPe
from gossamer.timing import Timing, interleaved, threads
from gossamer.train.config import DEMO
from gossamer.train.groups import parameter_groups
from gossamer.train.model import GPT, GPTConfig
from gossamer.train.run import BETAS, CLIP, WEIGHT_DECAY

DENSE, TWIN = "dense", "masked dense 2:4:v4"
SRSTE_STEP, SLOPE_STEP, SLOPE_THIN = "SR-STE 2:4:v4", "SLoPe 2:4:v4", "SLoPe 1:8:v4"
# (subject, rival, least rival / subject). SR-STE may take 1.1 times what its twin takes.
BARS = ((SRSTE_STEP, TWIN, 1 / 1.1), (SLOPE_STEP, DENSE, 1.3), (SLOPE_THIN, DENSE, 2.0))
DECAY = 2e-4


class MaskedDense(nn.Module):
    """`nn.Linear` under a moving N:M mask with torch alone: the gradient goes straight through.

    Args:
        linear: whose Parameters are taken over.
        pattern: of the mask.
    """

    def __init__(self, linear: nn.Linear, pattern: NM) -> None:
        super().__init__()
        self.weight, self.bias, self.pattern = linear.weight, linear.bias, pattern
        self.mask = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in_features] to [..., out_features]."""
        used, self.mask = _Masking.apply(self.weight, self.pattern)  # type: ignore[no-untyped-call]
        return F.linear(x, used, self.bias)

    @torch.no_grad()
    def decay(self, rate: float) -> None:
        """Shrink what the last forward pass masked."""
        self.weight.sub_(self.weight.mul(rate).masked_fill_(self.mask, 0.0))


class _Masking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, pattern: NM) -> tuple[Tensor, Tensor]:
        mask = largest(weight, pattern)
        ctx.mark_non_differentiable(mask)
        return weight * mask, mask

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return g, None


def largest(weight: Tensor, pattern: NM) -> Tensor:
    """The N:M mask of the largest magnitudes, with torch alone; the lower column wins a tie.

    A column's rank in its group is the number of columns that beat it. For groups of 4 that is
    faster than topk and scatter, and than a sort.

    Args:
        weight: [rows, cols].
        pattern: N:M; with a vector the magnitudes of a panel's rows are summed.

    Returns:
        bool [rows, cols], True = kept.
    """
    rows, cols = weight.shape
    scores = weight.abs().view(rows // pattern.vector, pattern.vector, cols).sum(1)
    columns = scores.view(-1, pattern.m).t().contiguous()
    kept = torch.empty(len(columns), columns.shape[1], dtype=torch.bool)
    for i, own in enumerate(columns):
        rank = torch.zeros(columns.shape[1], dtype=torch.int8)
        for j, other in enumerate(columns):
            if j != i:
                rank += other >= own if j < i else other > own
        torch.lt(rank, pattern.n, out=kept[i])
    mask = kept.t().reshape(rows // pattern.vector, 1, cols)
    return mask.expand(-1, pattern.vector, -1).reshape(rows, cols)


class Entrant:
    """A model, its optimizer, and one step of training on the same batch again and again.

    Args:
        model: a dense GPT of its own.
        recipe: prepares it and follows its optimizer; None leaves it as it is.
        twin: mask it with torch alone, by this pattern.
    """

    def __init__(self, model: GPT, recipe: Recipe | None = None, twin: NM | None = None) -> None:
        self.model = model
        self.masked: list[MaskedDense] = []
        if recipe is not None:
            recipe.prepare(model, rescale=True)
        if twin is not None:
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear):
                        self.masked.append(MaskedDense(child, twin))
                        setattr(parent, name, self.masked[-1])
        groups = parameter_groups(model, WEIGHT_DECAY)
        self.optimizer = torch.optim.AdamW(groups, lr=DEMO.lr, betas=BETAS, fused=True)
        if recipe is not None:
            recipe.attach(model, self.optimizer, total_steps=10_000)
        generator = torch.Generator().manual_seed(SEED)
        size = (DEMO.batch, DEMO.context + 1)
        tokens = torch.randint(VOCABULARY, size, generator=generator)
        self.inputs, self.targets = tokens[:, :-1], tokens[:, 1:]

    def step(self) -> float:
        """Train one step.

        Returns:
            The loss before it.
        """
        self.optimizer.zero_grad()
        loss = self.model.loss(self.inputs, self.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for layer in self.masked:
            layer.decay(DEMO.lr * DECAY)
        self.optimizer.step()
        return float(loss.detach())


def entrants() -> dict[str, Entrant]:
    """All of them, from the same initial weights."""
    torch.manual_seed(SEED)
    start = GPT(GPTConfig(VOCABULARY, DEMO.context, DEMO.width, DEMO.depth, DEMO.heads))

    def own() -> GPT:
        return copy.deepcopy(start)

    return {
        DENSE: Entrant(own()),
        TWIN: Entrant(own(), twin=NM(2, 4, 4)),
        SRSTE_STEP: Entrant(own(), SRSTE("2:4:v4", decay=DECAY)),
        SLOPE_STEP: Entrant(own(), SLoPe("2:4:v4")),
        SLOPE_THIN: Entrant(own(), SLoPe("1:8:v4")),
    }


def measure(rounds: int, count: int | None) -> dict[str, Any]:
    """Time all of them against each other.

    Args:
        rounds: measured steps of each.
        count: threads of torch; None leaves the number as it is.

    Returns:
        Seconds, ratios, bars and bytes, plain values for JSON.

    Raises:
        AssertionError: SR-STE and its twin do not compute the same.
    """
    with threads(count) as number:
        them = entrants()
        check_twin(them[SRSTE_STEP], them[TWIN])
        timings = interleaved({name: one.step for name, one in them.items()}, rounds, 3)
    return {
        "model": f"GPT {DEMO.width}x{DEMO.depth}, {DEMO.batch}x{DEMO.context} tokens",
        "machine": facts(), "commit": commit(), "threads": number, "rounds": rounds,
        "seconds": {name: _spread(t) for name, t in timings.items()},
        "state_bytes": {n: state_bytes(one.model, one.optimizer) for n, one in them.items()},
        "bars": [
            {
                "subject": subject, "rival": rival, "least": round(bound, 3),
                "ratio": (ratio := timings[rival].median / timings[subject].median),
                "held": ratio >= bound,
            }
            for subject, rival, bound in BARS
        ],
    }  # fmt: skip


def check_twin(ours: Entrant, twin: Entrant, steps: int = 2) -> None:
    """The losses of two entrants agree step by step, so that both do the same work."""
    for _ in range(steps):
        a, b = ours.step(), twin.step()
        if abs(a - b) > 1e-4 * abs(b):
            raise AssertionError(f"SR-STE's loss is {a}, its masked-dense twin's {b}")


def as_markdown(found: dict[str, Any]) -> str:
    """The table of what `measure` found."""
    dense = found["seconds"][DENSE]["median"]
    lines = [
        "# A step of training under a recipe", "",
        f"{found['model']}; {found['machine']['cpu']}, {found['machine']['isa']}, threads: "
        f"{found['threads']}; medians of {found['rounds']} interleaved steps; commit "
        f"{found['commit']}.", "",
        "| step | ms (quartiles) | times faster than dense | training state, MiB |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for name, spread in found["seconds"].items():
        low, high = spread["quartiles"]
        lines.append(
            f"| {name} | {spread['median'] * 1e3:.1f} ({low * 1e3:.1f}–{high * 1e3:.1f}) | "
            f"{dense / spread['median']:.2f} | {found['state_bytes'][name] / 2**20:.1f} |"
        )
    lines += ["", "| time of / time of | at least | measured | held |", "|---|---|---|---|"]
    for bar in found["bars"]:
        lines.append(
            f"| {bar['rival']} / {bar['subject']} | {bar['least']:.2f} | {bar['ratio']:.2f} | "
            f"{'yes' if bar['held'] else '**no**'} |"
        )
    lines += ["", *(note for note in honest_notes(found["machine"]) if "SparseProp" not in note)]
    return "\n".join(lines) + "\n"


def _spread(timing: Timing) -> dict[str, Any]:
    return {"median": timing.median, "quartiles": list(timing.quartiles)}


def main(arguments: Sequence[str] | None = None, show: Callable[[str], object] = print) -> None:
    """Measure, and write `recipes-steps.json` and `recipes-steps.md`."""
    parser = argparse.ArgumentParser(description=__doc__, prog="gossamer.bench.recipes_bench")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    given = parser.parse_args(arguments)
    found = measure(given.rounds, given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "recipes-steps.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = as_markdown(found)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    show(text)


if __name__ == "__main__":
    main()
