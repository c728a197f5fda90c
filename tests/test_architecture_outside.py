"""What `bench` and `experiments` may import: public names of `gossamer`, and only downward."""

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from test_architecture import PYTHON, ROOT, tracked


@cache
def public_names(module: str) -> frozenset[str]:
    """Names of a module that others may use: its `__all__`, or what it says it exports."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return frozenset(found.__all__)
    # Without a list: classes, functions and values, and modules that are imported `x as x`.
    tree = ast.parse(Path(str(found.__file__)).read_text())
    said = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    return frozenset(
        name
        for name, value in vars(found).items()
        if not name.startswith("_") and (name in said or not isinstance(value, ModuleType))
    )


def is_public_module(module: str) -> bool:
    """Whether a module is `gossamer`, or a public name of a public module."""
    above, _, name = module.rpartition(".")
    if module == "gossamer" or not is_public_module(above) or name not in public_names(above):
        return module == "gossamer"
    return isinstance(getattr(importlib.import_module(above), name), ModuleType)


def outside_imports(source: str) -> list[tuple[int, str, str]]:
    """(line, module, name) of each absolute import; the name is "" for `import module`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(node.lineno, base, alias.name) for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module"
            and isinstance(node.args[0], ast.Constant)
        ):
            found.append((node.lineno, str(node.args[0].value), ""))
    return found


def topic_of(parts: tuple[str, ...]) -> str:
    """The part of the tree outside the package that a module is of, such as `bench.prox`."""
    return ".".join(parts[: 2 if parts[0] == "bench" or len(parts) > 2 else 1])


def outside_breaches(source: str, path: str) -> list[str]:
    """What a file of `bench` or `experiments` imports against the rules."""
    parts = Path(path).with_suffix("").parts
    front_door = len(parts) == 2 or parts[1] == "suites"
    breaches = []
    for line, module, name in outside_imports(source):
        where = f"{path}:{line} imports {'.'.join(filter(None, (module, name)))}"
        top = module.split(".")[0]
        if module.startswith("."):
            breaches.append(f"{where}: name the whole module")
        elif top == "gossamer":
            if not is_public_module(module) or (name and name not in public_names(module)):
                breaches.append(f"{where}: it is no public name of gossamer")
        elif top in ("bench", "experiments"):
            whole = tuple(module.split(".")) + ((name,) if len(module.split(".")) == 1 else ())
            mine, theirs = topic_of(parts), ".".join(whole[:2])
            known = theirs in (mine, "bench.harness") or front_door
            if parts[0] == "bench" and (top == "experiments" or not known):
                breaches.append(f"{where}: imports only point down, and topics know the harness")
            elif parts[0] == "experiments" and top == "experiments" and not known:
                breaches.append(f"{where}: experiments do not know each other")
    return breaches


def test_bench_and_experiments_see_public_names_and_point_down() -> None:
    paths = [p.relative_to(ROOT) for p in tracked(".py")]
    paths = [p for p in paths if p.parts[0] in ("bench", "experiments")]
    assert {p.parts[0] for p in paths} == {"bench", "experiments"}
    breaches = [b for p in paths for b in outside_breaches((ROOT / p).read_text(), str(p))]
    assert not breaches, "\n".join(breaches)


def test_the_package_knows_neither_bench_nor_experiments() -> None:
    paths = [p for p in tracked(".py", ".pyi") if p.is_relative_to(PYTHON)]
    found = [
        f"{p.relative_to(ROOT)}:{line} imports {module}"
        for p in paths
        for line, module, _ in outside_imports(p.read_text())
        if module.split(".")[0] in ("bench", "experiments")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bench/prox/jobs.py", "from gossamer.prox.operators import top_k_"),
        ("bench/prox/jobs.py", "from gossamer.prox import operators"),
        ("bench/prox/jobs.py", "import gossamer.train.session"),
        ("bench/prox/jobs.py", "from gossamer import _core"),
        ("bench/harness/run.py", "import gossamer._core"),
        ("bench/harness/run.py", "from bench.layers import TOPIC"),
        ("bench/harness/run.py", "from bench import layers"),
        ("bench/layers/jobs.py", "def f():\n    from bench.prox.cases import normal"),
        ("bench/layers/jobs.py", "from experiments.digits import study"),
        ("bench/layers/jobs.py", "from . import cases"),
        ("bench/transport/solvers.py", 'ot = import_module("gossamer.ot.solve")'),
        ("experiments/digits/study.py", "from experiments.transport import uses"),
        ("experiments/digits/study.py", "from gossamer.pruning.shrink import shrink"),
    ],
)
def test_a_breach_outside_the_package_is_seen(path: str, source: str) -> None:
    assert len(outside_breaches(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bench/layers/jobs.py", "from gossamer import SparseWeight, backend, timing"),
        ("bench/layers/jobs.py", "from bench.layers import cases"),
        ("bench/cli.py", "from bench.layers import TOPIC"),
        ("experiments/transport/uses.py", "from bench.transport.cases import grid"),
        ("experiments/cli.py", "from experiments.digits.study import run"),
        ("experiments/sparsest_relu/fit.py", "from gossamer.prox.path_norm import balance_"),
    ],
)
def test_what_is_allowed_outside_the_package(path: str, source: str) -> None:
    assert outside_breaches(source, path) == []
