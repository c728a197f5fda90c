"""The layers, file sizes, names and texts that the design promises."""

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "python" / "gossamer"
CSRC = ROOT / "csrc"

# Lowest first. A module imports from its own package and from the layers below; modules of one
# layer do not know each other.
PYTHON_LAYERS = [
    {"errors"},
    {"arguments", "deprecations"},
    {"patterns", "schedules", "timing", "tables", "agg", "nested"},
    {"_core"},  # the stub of the compiled module
    {"backend"},
    {"weight", "masks", "prox", "ot"},
    {"ops"},
    {"activations"},
    {"nn", "codes"},
    {"distributed"},
    {"optim"},
    {"pruning", "io"},
    {"recipes"},
    {"train", "profiling", "integrations"},
    {"about"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
# Within a layer, who may know whom all the same.
PYTHON_NEIGHBOURS = {
    ("weight", "masks"),
}
CPP_LAYERS = ["core", "simd", "gpu", "layouts", "products"]
CPP_LAYERS += ["transport", "prox", "codes", "masks", "activations", "bind"]
# The package that speaks to the compiled modules, and their own types; every other one goes
# through it.
CORE_IMPORTERS = {"backend", "_core"}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
MAX_LINES = 400

# Places that exist on one machine only.
MACHINE_WORDS = re.compile(r"(?<![\w.])/(?:work|tmp/w|root|opt/(?:wheels|pypi))(?:/|\b)")


def tracked(*suffixes: str) -> list[Path]:
    """Files that git knows or would add, or the whole tree where there is no git (an sdist)."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listing.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for p in ROOT.rglob("*") if not {".venv", "build"} & set(p.parts)]
    return sorted(p for p in paths if p.is_file() and (not suffixes or p.suffix in suffixes))


def layer_of(name: str) -> int | None:
    return next((i for i, names in enumerate(PYTHON_LAYERS) if name in names), None)


def module_of(path: Path) -> list[str]:
    """`nn/linear.py` -> ["nn", "linear"]; `nn/__init__.py` -> ["nn"]; the root -> []."""
    parts = list(path.relative_to(PYTHON).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def internal_imports(source: str, path: Path) -> list[tuple[int, str]]:
    """(line, dotted name below `gossamer`) of each import of our own modules."""
    package = module_of(path)
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join(["gossamer", *above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        ours = [n.removeprefix("gossamer.") for n in names if n.startswith("gossamer.")]
        found += [(node.lineno, name) for name in ours]
    return found


def python_breaches(source: str, path: Path) -> list[str]:
    own = module_of(path)
    breaches = []
    for line, name in internal_imports(source, path):
        top = name.split(".")[0]
        where = f"{'.'.join(own) or 'gossamer'}:{line} imports {name}"
        if top == "_core":
            if not own or own[0] not in CORE_IMPORTERS:
                breaches.append(f"{where}: only {', '.join(sorted(CORE_IMPORTERS))} may")
            continue
        if not own or top == own[0] or top == "__version__":
            continue
        mine, theirs = layer_of(own[0]), layer_of(top)
        if mine is None or theirs is None:
            breaches.append(f"{where}: place {own[0] if mine is None else top} in PYTHON_LAYERS")
        elif theirs >= mine and (own[0], top) not in PYTHON_NEIGHBOURS:
            breaches.append(f"{where}: imports only point down")
    return breaches


INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
PYTHON_HEADER = re.compile(r"^(?:Python\.h|pybind11/|torch/|ATen/|c10/|numpy/)")


def cpp_breaches(source: str, folder: str) -> list[str]:
    breaches = []
    for header in INCLUDE.findall(source):
        if PYTHON_HEADER.match(header) and folder != "bind":
            breaches.append(f"includes {header}: only csrc/bind sees Python or torch")
        top = header.split("/")[0]
        if top in CPP_LAYERS and CPP_LAYERS.index(top) > CPP_LAYERS.index(folder):
            breaches.append(f"includes {header}: includes only point down")
        if header.startswith(".."):
            breaches.append(f"includes {header}: name it from csrc, so that its layer shows")
    return breaches


def test_python_imports_point_down() -> None:
    paths = [p for p in tracked(".py", ".pyi") if p.is_relative_to(PYTHON)]
    assert paths
    breaches = [b for p in paths for b in python_breaches(p.read_text(), p)]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("backend/products.py", "from gossamer.weight import SparseWeight"),
        ("patterns/text.py", "from .. import backend"),
        ("nn/linear.py", "from ..cli import main"),
        ("nn/linear.py", "def f():\n    import gossamer.train.run"),
        ("weight/sparse_weight.py", "from gossamer import _core"),
        ("ops/torch.py", "from .._core import spmm"),
        ("masks/n_of_m.py", "from gossamer._core.products import Layout"),
        ("prox/path_norm.py", "def f():\n    import gossamer._core"),
        ("codes/core.py", "from .. import _core"),
        ("ot/core.py", "import gossamer._core as core"),
        ("__init__.py", "from . import _core"),
        ("unheard_of.py", "from .errors import GossamerError"),
        ("nn/surgery.py", "from ..unheard_of import thing"),
        ("train/loop.py", "from gossamer.commands import app"),
    ],
)
def test_a_breach_in_python_is_seen(module: str, source: str) -> None:
    assert len(python_breaches(source, PYTHON / module)) == 1


LAYER_CLASSES = PYTHON / "nn" / "layers"
# What everyone may ask for: the protocol that all layers with a mask answer.
LAYER_PROTOCOLS = {"MaskedLayer"}


@functools.cache
def concrete_layers() -> frozenset[str]:
    """Names of the layer classes that only their own room may tell apart."""
    trees = [ast.parse(path.read_text()) for path in LAYER_CLASSES.glob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    autograd = {c.name for c in classes if any(ast.unparse(b) == "Function" for b in c.bases)}
    return frozenset({c.name for c in classes} - autograd - LAYER_PROTOCOLS)


def tells_layers_apart(source: str) -> list[str]:
    """Each place that asks whether a module is of a concrete layer class."""
    layers = concrete_layers()
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked: list[ast.expr] = node.args[1:]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            asked = [node.left, *node.comparators]
        else:
            continue
        words = {word for part in asked for word in re.findall(r"\w+", ast.unparse(part))}
        found += [f"line {node.lineno}: {name}" for name in sorted(words & layers)]
    return found


def test_only_nn_layers_tells_layer_classes_apart() -> None:
    assert {"SparseLinear", "MaskedLinear", "ThresholdLinear", "Doped"} <= concrete_layers()
    found = [
        f"{path.relative_to(PYTHON)}, {place}"
        for path in tracked(".py")
        if path.is_relative_to(PYTHON) and not path.is_relative_to(LAYER_CLASSES)
        for place in tells_layers_apart(path.read_text())
    ]
    assert len(found) == 0, "ask MaskedLayer instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(module, SparseLinear)",
        "isinstance(module, nn.Linear | MaskedLinear)",
        "issubclass(kind, (nn.Linear, gossamer.nn.AdaptedLinear))",
        "type(module) is BiMaskLinear",
        "def f():\n    return [m for m in model if isinstance(m, Branches)]",
    ],
)
def test_telling_layers_apart_is_seen(source: str) -> None:
    assert len(tells_layers_apart(source)) == 1
    assert not tells_layers_apart("isinstance(module, MaskedLayer | nn.Linear)")


def test_cpp_includes_point_down() -> None:
    breaches = []
    for path in (p for p in tracked(".hpp", ".cpp", ".cuh", ".cu") if p.is_relative_to(CSRC)):
        folder = path.relative_to(CSRC).parts[0]
        assert folder in CPP_LAYERS, f"{path}: place {folder} in CPP_LAYERS"
        found = cpp_breaches(path.read_text(), folder)
        breaches += [f"{path.relative_to(ROOT)} {breach}" for breach in found]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("core", '#include "layouts/panels.hpp"'),
        ("layouts", '#include "products/table.hpp"'),
        ("products", '#  include "bind/tensor.hpp"'),
        ("products", "#include <pybind11/pybind11.h>"),
        ("core", "#include <Python.h>"),
        ("core", '#include "../products/table.hpp"'),
    ],
)
def test_a_breach_in_cpp_is_seen(folder: str, source: str) -> None:
    assert len(cpp_breaches(source, folder)) == 1


def test_files_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in tracked(".py", ".pyi", ".hpp", ".cpp", ".cu", ".cuh")
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]
    assert not long, "a file of more than 400 lines is two ideas:\n" + "\n".join(long)


def test_names_say_what_is_inside() -> None:
    vague = [
        str(path.relative_to(ROOT))
        for path in tracked(".py", ".hpp", ".cpp", ".cu", ".cuh")
        if BANNED_NAMES & {part.split(".")[0] for part in path.relative_to(ROOT).parts}
    ]
    assert not vague


def test_texts_name_no_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_WORDS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
