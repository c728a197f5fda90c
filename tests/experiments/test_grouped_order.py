"""The prototypes that use the order of n:m:g compute the products, and are measured."""

import shutil
from pathlib import Path

import pytest

import gossamer
from experiments.grouped_order.study import run

NEEDED = shutil.which("c++") is not None and "avx512" in gossamer.isas()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not NEEDED, reason="needs a compiler and AVX-512")
def test_the_prototypes_are_checked_and_measured(tmp_path: Path) -> None:
    table = run(tmp_path, [(64, 48, 96)], [8], rounds=1).read_text()
    assert "| 64×48×96, 8 | forward |" in table
    assert "| 64×48×96, 8 | transposed |" in table
