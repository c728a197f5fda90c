"""Run POT's own tests of its entropic solvers against gossamer.ot.pot_backend.

    git clone --branch 0.9.7 https://github.com/PythonOT/POT
    pip install --no-deps POT
    python tests/peers/pot_suite.py POT [--write docs/pot-tests.md]

test_bregman, unbalanced/test_sinkhorn and test_solvers are read from the checkout, never copied.
Every failure belongs to one of `CAUSES`; one that does not, or more than MOST of them, is an error.
Tests that call none of our functions are counted apart: they say nothing about us.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

FILES = ("test_bregman.py", "unbalanced/test_sinkhorn.py", "test_solvers.py")
MOST = 40  # failures
PLUGIN = Path(__file__).parent
# (cause, pattern of the test's name, pattern of the message), the first that fits counts.
CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "Exact marginals of unequal masses have no plan; POT iterates to its cap and returns "
        "numbers, `pot_backend` refuses.",
        "test_unbalanced_relaxation_parameters",
        "^ProblemError: a sums to .* equal masses",
    ),
    (
        "`reg=0` in `sinkhorn` divides by zero; POT warns and returns NaN, `pot_backend` refuses.",
        "test_nan_warning",
        "DID NOT WARN",
    ),
    (
        "Another problem than entropic or exact transport, which is not offered: POT's own solver "
        "is the one to call.",
        "test_solve_sample_methods",
        "^NotOffered: method is .* another problem",
    ),
    (
        "Points with a lazy cost and penalised marginals: POT refuses, `pot_backend` solves them.",
        "test_solve_sample_NotImplemented.*lazy.*reg.*unbalanced",
        "DID NOT RAISE",
    ),
)


def run(checkout: Path) -> list[dict[str, Any]]:
    """Run the tests; return one record per test."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record.jsonl")
        paths = os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"GOSSAMER_POT_RECORD": str(record), "PYTHONPATH": paths}
        # No file of POT's configuration: its options want plugins that are not needed here.
        process = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(checkout),
                "-p", "pot_plugin", "-p", "no:cacheprovider", "--no-header", "--tb=no",
                *(str(checkout / "test" / name) for name in FILES),
            ],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        if process.returncode not in (0, 1) or not record.exists():
            sys.exit(f"POT's tests did not run:\n{process.stdout[-4000:]}")
        return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]


def cause_of(record: dict[str, Any]) -> str:
    """The cause of a failure, or "" if none is known."""
    for cause, test, message in CAUSES:
        if re.search(test, record["test"]) and re.search(message, record["message"], re.DOTALL):
            return cause
    return ""


def main() -> None:
    """Run, tell, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="folder of POT's sources, with test/")
    parser.add_argument("--write", type=Path, help="page to write the list into")
    parser.add_argument("--json", type=Path, help="file for the records")
    options = parser.parse_args()
    missing = [name for name in ("conftest.py", *FILES)
               if not (options.checkout / "test" / name).exists()]  # fmt: skip
    if missing:
        sys.exit(
            f"{options.checkout} has no test/{missing[0]}; give a git checkout of POT (its source "
            "distribution lacks some tests)"
        )
    everything = run(options.checkout)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))
    ours = [record for record in everything if record["called"]]
    failed = [record for record in ours if record["outcome"] == "failed"]
    outcomes = Counter(record["outcome"] for record in ours)
    causes = Counter(cause_of(record) for record in failed)
    strange = Counter(record["outcome"] for record in everything if not record["called"])
    print(f"{len(ours)} tests call gossamer.ot.pot_backend: {dict(outcomes)}")
    print(f"{sum(strange.values())} do not: {dict(strange)}")
    for record in failed:
        known = cause_of(record) or "NO KNOWN CAUSE"
        print(f"  {record['test']}\n      {known}\n      {record['message'][:160]!r}")
    if options.write:
        options.write.write_text(page(options.write.read_text(), ours, failed))
    if causes[""] or len(failed) > MOST:
        sys.exit(f"{len(failed)} fail (at most {MOST} may), {causes['']} without a known cause")


def page(text: str, ours: list[dict[str, Any]], failed: list[dict[str, Any]]) -> str:
    """The page with the numbers and the list between its marker comments."""
    outcomes = Counter(record["outcome"] for record in ours)
    skipped = [record for record in ours if record["outcome"] == "skipped"]
    lines = [
        f"Of {len(ours)} tests that call `pot_backend`, {outcomes['passed']} pass, "
        f"{outcomes['failed']} fail, and {outcomes['skipped']} end as skipped: POT's tests skip "
        "where a NotImplementedError says that a problem is not solved.",
        "",
        "| tests | cause |",
        "|---|---|",
    ]
    by_cause: dict[str, Counter[str]] = {}
    for record in failed:
        function = re.sub(r"\[.*", "", record["test"]).partition("::")[2]
        by_cause.setdefault(cause_of(record), Counter())[function] += 1
    for cause, functions in by_cause.items():
        names = ", ".join(f"{count} of `{name}`" for name, count in functions.items())
        lines.append(f"| {names} | {cause} |")
    names = Counter(re.sub(r"\[.*", "", r["test"]).partition("::")[2] for r in skipped)
    listed = ", ".join(f"{count} of `{name}`" for name, count in names.items())
    lines += ["", f"Skipped: {listed}."]
    start, end = "<!-- suite -->", "<!-- /suite -->"
    head, tail = text.partition(start)[0], text.partition(end)[2]
    return f"{head}{start}\n" + "\n".join(lines) + f"\n{end}{tail}"


if __name__ == "__main__":
    main()
