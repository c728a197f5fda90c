"""Records and results of a bench, written down instead of measured."""

from pathlib import Path
from typing import Any

from bench.harness.record import GOSSAMER, Quartiles, Record
from bench.harness.results import Results
from bench.layers import cases
from bench.layers.bars import FORWARD
from bench.layers.cases import NN_LINEAR

MACHINE: dict[str, Any] = {
    "cpu": "AMD Test", "cores": 2, "caches": {"L2": "1024K"}, "isa": "avx512",
    "isas": ["avx512", "avx2"], "torch_capability": "AVX512", "mkl": "", "system": "Linux x",
    "versions": {"torch": "2.13.0"},
}  # fmt: skip


def made(
    topic: str = FORWARD,
    pattern: str = "90%",
    shape: str = str(cases.SHAPES[0]),
    subject: float = 1.0,
    unit: str = "s",
    dtype: str = "float32",
    threads: int = 1,
    **rival: float,
) -> Record:
    times = {name.replace("_", "."): value for name, value in rival.items()} or {NN_LINEAR: 5.0}
    measured = {GOSSAMER: subject} | times
    return Record(
        topic,
        shape,
        pattern,
        dtype,
        threads,
        0.1,
        GOSSAMER,
        unit,
        {name: Quartiles.exactly(value) for name, value in measured.items()},
        {name: Quartiles.exactly(value / subject) for name, value in times.items()},
        1e9,
    )


def results(path: Path, *records: Record) -> Results:
    return Results(path, MACHINE, {"quick": False}, ["abc"], list(records))
