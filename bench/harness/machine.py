"""What the bench ran on: processor, caches, instruction sets, versions and commit."""

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gossamer import info, isa, isas

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def facts(rivals: Iterable[str] = ("sparseprop",)) -> dict[str, Any]:
    """Collect what a reader needs to judge the numbers, and what makes them comparable.

    Args:
        rivals: distributions whose versions matter.

    Returns:
        Plain values, ready for JSON.
    """
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "caches": caches(),
        "isa": isa(),
        "isas": isas(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": mkl_target(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(rivals),
    }


def cpu_name() -> str:
    """The processor's own name, or its architecture.

    A virtual machine's name is "AMD EPYC" alone, whatever the model: AMD's generation is added.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = dict(
        re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE)
    )
    name = fields.get("model name", platform.machine()).strip()
    if "AMD" not in name or re.search(r"\d", name):
        return name
    return f"{name} {_zen(int(fields['cpu family']), int(fields['model']))}".strip()


def _zen(family: int, model: int) -> str:
    """AMD's generation from CPUID's family and model; "" if it is none of these.

    Reference:
        The models by which GCC knows znver1 to znver5 (gcc/common/config/i386/cpuinfo.h).
    """
    if family == 0x17:
        return "Zen 2" if model >= 0x30 else "Zen 1"
    if family == 0x19:
        newer = 0x10 <= model <= 0x1F or 0x60 <= model <= 0xAF
        return "Zen 4" if newer else "Zen 3"
    return "Zen 5" if family == 0x1A else ""


def available_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16: torch's own products of it are slow without."""
    return any("bf16" in name or name == "amx" for name in isas())


def caches() -> dict[str, str]:
    """Sizes of the first core's data caches by level, as the system names them."""
    sizes = {}
    for index in sorted(_CACHES.glob("index*")):
        try:
            kind, level, size = (
                (index / name).read_text(encoding="utf-8").strip()
                for name in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            sizes[f"L{level}"] = size
    return sizes


def versions(rivals: Iterable[str]) -> dict[str, str]:
    """Versions of what takes part; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "gossamer": str(info()["version"])}
    for name in ("torch", "numpy", *rivals):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def mkl_target() -> str:
    """For which processors MKL says it chose its kernels, or "" if torch has no MKL.

    MKL prints it on the first product of a process that asks, so a process of its own is asked.
    """
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return ""
    code = "import torch; a = torch.ones(64, 64); a @ a"
    asked = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MKL_VERBOSE": "1"},
    )
    found = re.search(r"^MKL_VERBOSE (?:oneMKL|Intel.*?MKL) (.+?), (?:Lnx|Win|OSX)", asked.stdout)
    return found.group(1) if found else ""


def commit() -> str | None:
    """The git commit of this source, ``-dirty`` when sources differ from it; None outside git."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        # An installed copy may lie inside some other repository, which does not track it.
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None
        name = git("rev-parse", "--short=12", "HEAD").stdout.strip()
        changed = git(
            "status",
            "--porcelain",
            "--",
            ":/csrc",
            ":/python",
            ":/bench/*.py",
            ":/experiments/*.py",
        ).stdout.strip()
    except OSError:
        return None
    return f"{name}-dirty" if changed else name


def honest_notes(machine: dict[str, Any]) -> list[str]:
    """What a reader must know before comparing the ratios with other machines.

    Args:
        machine: what `facts` returned.

    Returns:
        Sentences.
    """
    notes = []
    wide_cpu = any(isa.startswith("avx512") for isa in machine["isas"])
    if wider_than_mkl(machine):
        notes.append(
            "MKL runs 256-bit (AVX2) code on this AMD processor, Gossamer runs 512-bit: part of "
            "every float32 ratio to nn.Linear, and most of what lies beyond 1/density, comes from "
            "the wider vectors. `--isa avx2` compares at equal width."
        )
    elif wide_cpu and _is_amd(machine) and machine["isa"] == "avx2":
        notes.append(
            "This processor has AVX-512; Gossamer was held to AVX2, the width of MKL's code on "
            "AMD processors: the ratios to nn.Linear compare at equal width."
        )
    if "sparseprop" not in machine["versions"]:
        notes.append("SparseProp is not installed: nothing was measured against it.")
    elif wide_cpu:
        notes.append(
            "SparseProp is compiled with -march=native, but its kernels are written in AVX2."
        )
    return notes


def wider_than_mkl(machine: dict[str, Any]) -> bool:
    """Whether Gossamer ran on wider vectors than torch's dense products did.

    On AMD processors with AVX-512 MKL spends its time in ``mkl_blas_def_sgemm_kernel_0_zen``,
    which uses no 512-bit register (oneMKL 2024.0 in torch 2.13, seen with perf on Zen 5).

    Args:
        machine: what `facts` returned.

    Returns:
        True on such a machine when Gossamer's AVX-512 code was in use.
    """
    return _is_amd(machine) and bool(machine["isa"].startswith("avx512"))


def _is_amd(machine: dict[str, Any]) -> bool:
    return "AMD" in machine["cpu"]
