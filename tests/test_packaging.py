"""Wheels: what pyproject.toml promises, the workflow that builds them, and the version."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest

import gossamer
from support.fences import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "wheels.yml"
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load(WORKFLOW.read_text()))


def test_the_version_is_everywhere_the_same(project: dict[str, Any]) -> None:
    assert gossamer.__version__ == gossamer.info()["version"] == project["project"]["version"]


def test_the_metadata_is_that_of_pyproject(project: dict[str, Any]) -> None:
    found, declared = metadata("gossamer"), project["project"]
    assert found["Requires-Python"] == declared["requires-python"] == f">={PYTHONS[0]}"
    required = [r for r in found.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert sorted(required) == sorted(declared["dependencies"])
    named = [c.rpartition(" ")[2] for c in declared["classifiers"] if ":: Python ::" in c]
    assert named == PYTHONS


def test_wheels_are_built_for_every_python_that_is_named(project: dict[str, Any]) -> None:
    built = project["tool"]["cibuildwheel"]
    assert built["build"] == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    # torch has no wheel for an older glibc, and its libgomp must serve both.
    assert {built[f"manylinux-{arch}-image"] for arch in ("x86_64", "aarch64")} == {
        "manylinux_2_28"
    }
    assert "--exclude libgomp.so.1" in built["linux"]["repair-wheel-command"]
    for path in built["test-sources"]:
        assert (ROOT / path).exists()
    for path in re.findall(r"tests/\S+", " ".join(built["test-command"])):
        assert (ROOT / path).exists()


def test_the_workflow_builds_tests_and_publishes(workflow: dict[str, Any]) -> None:
    jobs = workflow["jobs"]
    assert set(jobs) == {"wheels", "sdist", "cuda", "publish"}
    matrix = jobs["wheels"]["strategy"]["matrix"]["include"]
    assert [row["arch"] for row in matrix] == ["x86_64", "aarch64"]
    assert jobs["publish"]["needs"] == ["wheels", "sdist"]
    assert "refs/tags/v" in jobs["publish"]["if"]  # nothing is published from a branch
    assert "workflow_dispatch" in jobs["cuda"]["if"]  # a machine with a GPU is asked for by hand
    for name, job in jobs.items():
        assert job["timeout-minutes"] <= 120, name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), (name, step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[\w./-]+", step["uses"]), (name, step)


def test_every_expression_of_the_workflow_names_what_there_is(workflow: dict[str, Any]) -> None:
    rows = workflow["jobs"]["wheels"]["strategy"]["matrix"]["include"]
    for expression in re.findall(r"\$\{\{(.*?)\}\}", WORKFLOW.read_text()):
        context, _, name = expression.strip().partition(".")
        assert context == "matrix", expression
        assert all(name in row for row in rows), expression


def test_actionlint_has_nothing_to_say() -> None:
    if (actionlint := shutil.which("actionlint")) is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([actionlint, WORKFLOW], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_change_log_has_a_place_for_what_is_next() -> None:
    text = Path(ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", text, re.M)
    assert headings[0] == "Unreleased"
    assert len(headings) == len(set(headings))
