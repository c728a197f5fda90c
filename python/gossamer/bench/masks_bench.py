"""Kernels that choose masks at every step, measured: `python -m gossamer.bench.masks_bench`.

Selection reads a dense weight and writes its kept entries; nothing can be faster than the memory.
Its bar is a share of the bandwidth of torch's `copy_` of the same weight, in the same interleaved
run: bytes read and written, over seconds. Transposable masks are measured in `tiles_bench`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gossamer import backend
from gossamer.bench import machine, tiles_bench
from gossamer.bench.rivals import WrongResultError
from gossamer.masks import magnitude_mask
from gossamer.masks.n_of_m import add_pruned_, select_nm
from gossamer.timing import interleaved, threads

__all__ = ["as_markdown", "main", "rows"]

PATTERNS = ("2:4", "2:4:v4", "1:4", "2:8", "1:8", "1:16")
# Share of the copy's bandwidth.
BAR = 0.6
_COPY = "copy_"


def rows(quick: bool, rounds: int = 31) -> list[dict[str, Any]]:
    """Measure selection and the decay of pruned entries beside a copy.

    Args:
        quick: A small weight that the caches hold: shows that everything works, no more.
        rounds: Of each interleaved run.

    Returns:
        Rows with the keys kernel, case, threads, gossamer_seconds, rival, rival_seconds, bar,
        ratio and note; seconds are medians, the ratio is a share of the copy's bandwidth.

    Raises:
        WrongResultError: A selection is not that of the mask.
    """
    size = 512 if quick else 4096
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    copy = torch.empty_like(weight)
    calls: dict[str, Callable[[], object]] = {_COPY: lambda: copy.copy_(weight)}
    moved = {_COPY: 2 * weight.nbytes}
    for text in PATTERNS:
        _verify(weight[:256], text)
        out = select_nm(weight, text)
        calls[f"select_nm {text}"] = partial(select_nm, weight, text, out)
        moved[f"select_nm {text}"] = weight.nbytes + out[0].nbytes + out[1].indices.nbytes
    _, structure = select_nm(weight, "2:4")
    calls["add_pruned_ 2:4"] = lambda: add_pruned_(copy, weight, 2e-4, structure)
    moved["add_pruned_ 2:4"] = 3 * weight.nbytes + structure.indices.nbytes
    found = []
    for count in (1, 2):
        with threads(count):
            times = interleaved(calls, repeats=3 if quick else rounds, warmup=2)
        speed = {name: moved[name] / t.median for name, t in times.items()}
        for name in list(calls)[1:]:
            kernel, pattern = name.split()
            found.append(
                {
                    "kernel": kernel,
                    "case": f"{pattern}, {size}x{size} float32",
                    "threads": count,
                    "gossamer_seconds": times[name].median,
                    "rival": _COPY,
                    "rival_seconds": times[_COPY].median,
                    "bar": BAR,
                    "ratio": speed[name] / speed[_COPY],
                    "note": f"share of bandwidth: {speed[name] / 1e9:.1f} of "
                    f"{speed[_COPY] / 1e9:.1f} GB/s",
                }
            )
    return found


def _verify(weight: torch.Tensor, text: str) -> None:
    values, structure = select_nm(weight, text)
    mask = magnitude_mask(weight, text)
    if not torch.equal(backend.scatter(values, structure), weight * mask):
        raise WrongResultError(f"select_nm {text}: not the entries of magnitude_mask")


def as_markdown(found: dict[str, Any]) -> str:
    """A table of everything, and how the bars stand.

    Args:
        found: What `main` writes as JSON.

    Returns:
        Markdown.
    """
    facts = found["machine"]
    lines = [
        f"- {facts['cpu']}, {facts['cores']} cores, instruction set {facts['isa']}; torch "
        f"{facts['versions']['torch']}; commit {found['commit'] or 'unknown'}",
        "- medians of interleaved rounds; outputs of a selection are reused, as in training",
    ]
    if found["quick"]:
        lines.append("- A quick run: it shows that everything works, its numbers mean little.")
    lines += [
        "",
        "| kernel | case | threads | Gossamer | rival | compared | bar |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    judged = [row for row in found["rows"] if row["bar"] is not None]
    for row in found["rows"]:
        rival = f"{row['rival']} {_seconds(row['rival_seconds'])}".strip()
        mark = "" if row["bar"] is None else " ✓" if row["ratio"] >= row["bar"] else " ✗"
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.3g}{mark}"
        bar = "–" if row["bar"] is None else f"≥ {row['bar']:g}"
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(
            f"| {row['kernel']} | {row['case']}{note} | {row['threads']} | "
            f"{_seconds(row['gossamer_seconds'])} | {rival} | {ratio} | {bar} |"
        )
    met = sum(row["ratio"] >= row["bar"] for row in judged)
    return "\n".join([*lines, "", f"{met} of {len(judged)} bars met."]) + "\n"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def main(
    arguments: Sequence[str] | None = None, show: Callable[[str], object] = print
) -> dict[str, Any]:
    """Measure, and write `masks.json` and `masks.md`.

    Args:
        arguments: Of the command line; None takes those of the process.
        show: What prints the table.

    Returns:
        What stands in the JSON file.
    """
    parser = argparse.ArgumentParser(description=__doc__, prog="gossamer.bench.masks_bench")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work?")
    parser.add_argument("--only-select", action="store_true", help="no transposable masks")
    given = parser.parse_args(arguments)
    measured = rows(given.quick)
    if not given.only_select:
        measured += tiles_bench.rows(given.quick)
    found = {
        "machine": machine.facts(()),
        "commit": machine.commit(),
        "quick": given.quick,
        "rows": measured,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "masks.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = as_markdown(found)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    show(text)
    return found


if __name__ == "__main__":
    main()
