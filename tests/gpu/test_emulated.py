"""Kernels of a GPU: emulated against products in double, and as nvcc compiles them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from gpu.faults import FAULTS, HARMLESS, ROOT

HERE = Path(__file__).parent
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
TARGETS = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",
]
# What a kernel must have in its SASS to run on the tensor cores, by target.
INSTRUCTIONS = {
    ("sm_80", "spmm_gather"): (r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.MT88\.4", r"LDGSTS"),
    ("sm_90a", "spmm_gather"): (r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.MT88\.4", r"LDGSTS"),
    ("sm_90a", "spmm_rows"): (r"HGMMA\.64x128x16\.F32\.BF16", r"WARPGROUP\.DEPBAR"),
}


def build(folder: Path, *flags: str) -> Path:
    program = folder / "check"
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    command = [compiler, "-std=c++20", "-U_FORTIFY_SOURCE", *INCLUDES, *flags]
    subprocess.run([*command, str(HERE / "check.cpp"), "-o", str(program)], check=True)
    return program


def test_kernels_under_eight_schedules(tmp_path: Path) -> None:
    program = build(tmp_path, "-O1", *WARNINGS)
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^0 of \d{3} runs fail$", ran.stdout, re.MULTILINE), ran.stdout


@pytest.mark.slow
def test_kernels_stay_inside_their_arrays(tmp_path: Path) -> None:
    program = build(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    command = [str(program), "--small"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]


def test_faults_are_still_in_the_sources() -> None:
    """`python tests/gpu/faults.py` plants them, which takes minutes."""
    for name, fault in FAULTS.items():
        assert fault.text in (ROOT / "csrc" / fault.file).read_text(), name
    assert set(HARMLESS) <= set(FAULTS)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_program_of_a_device(tmp_path: Path) -> None:
    """Every target compiles without spills; the program starts, and says what it lacks."""
    program = tmp_path / "check"
    command = ["nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-cudart=static", *TARGETS]
    command += ["-Xptxas=-v,-warn-spills,-Werror", *INCLUDES, str(HERE / "check.cu")]
    made = subprocess.run(
        [*command, "-o", str(program)], capture_output=True, text=True, check=False, timeout=600
    )
    assert made.returncode == 0, made.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", made.stderr)
    assert len(spills) > 20
    assert set(spills) == {("0", "0")}
    check_sass(program)
    ran = subprocess.run([program, "--small"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 or "cudaMalloc" in ran.stdout, ran.stdout


def check_sass(program: Path) -> None:
    """Assert that each kernel has its instructions and no local memory."""
    tools = Path(sysconfig.get_paths()["purelib"], "nvidia", "cu13", "bin")
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    cuobjdump = shutil.which("cuobjdump", path=path)
    if cuobjdump is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    listing = subprocess.run(
        [cuobjdump, "-sass", str(program)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": path},
    ).stdout
    seen = set()
    for part in re.split(r"^\s*Fatbin elf code:", listing, flags=re.MULTILINE):
        arch = re.search(r"arch = (sm_\w+)", part)
        for function in re.split(r"^\s*Function : ", part, flags=re.MULTILINE)[1:]:
            name = function.split(None, 1)[0]
            for (target, kernel), needed in INSTRUCTIONS.items():
                if arch is None or arch[1] != target or f"{len(kernel)}{kernel}I" not in name:
                    continue
                seen.add((target, kernel))
                assert all(re.search(one, function) for one in needed), name
                assert not re.search(r"\b(LDL|STL)\b", function), name
    assert seen == set(INSTRUCTIONS)
