"""The bench's harness: files of results, plans, runs and options. No test depends on a time."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import gossamer
from bench import cli
from bench.activations import TOPIC as ACTIVATIONS
from bench.cli import GROUPS, TOPICS, app, runner
from bench.convolutions import TOPIC as CONVOLUTIONS
from bench.harness import plan as planning
from bench.harness import run
from bench.harness.machine import cpu_name, honest_notes
from bench.harness.plan import Job
from bench.harness.record import Quartiles, Record, ratios
from bench.harness.results import Results
from bench.harness.run import Options, run_topic
from bench.layers import TOPIC
from bench.layers.bars import BOTH, FORWARD
from bench.layers.cases import FULL, NN_LINEAR, QUICK
from bench.masks import TOPIC as MASKS
from bench.models import TOPIC as MODELS
from bench.prox import TOPIC as PROX
from bench.transport import TOPIC as TRANSPORT
from bench.weights import TOPIC as WEIGHTS
from gossamer.errors import ArgumentError, CheckpointError, GossamerError
from gossamer.timing import Timing
from support.bench_records import MACHINE, made, results

EARLIER = sorted((Path(__file__).parents[2] / "bench" / "results").glob("amd-*.json"))


def test_ratios_are_of_medians_with_quartiles_of_rounds() -> None:
    ours, theirs = Timing.from_samples([1.0, 2.0, 4.0]), Timing.from_samples([2.0, 6.0, 8.0])
    found = ratios({"ours": ours, "theirs": theirs}, "ours")
    assert found == {"theirs": Quartiles(3.0, 2.0, 2.5, 3)}


def test_results_survive_the_file(tmp_path: Path) -> None:
    found = results(tmp_path / "r.json", made(), made(BOTH, threads=2))
    found.save()
    assert Results.load(found.path) == found
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    content = json.loads(found.path.read_text())
    assert {"schema", "machine", "settings", "commits", "records", "errors", "complete"} == set(
        content
    )
    assert set(content["records"][0]["measured"][NN_LINEAR]) == {"median", "low", "high", "count"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": 99}', '{"schema": 1, "machine": {}}']
)
def test_damaged_results_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(CheckpointError, match="measure anew"):
        Results.load(tmp_path / "r.json")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GossamerError, match="choose another --out"):
        results(tmp_path / "file" / "r.json").save()


def test_a_disturbed_run_is_measured_again_and_the_steadier_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timings(low: float, high: float) -> dict[str, Timing]:
        return {"ours": Timing.from_samples([low, 1.0, high])}

    answers = [timings(1, 1), timings(0.5, 1.5), timings(0.8, 1.3)]
    monkeypatch.setattr(planning, "interleaved", lambda *_, **__: answers.pop(0))
    assert planning.time_together(QUICK, {}) == timings(0.8, 1.3)
    answers = [timings(1, 1), timings(0.95, 1.05)]
    assert planning.time_together(QUICK, {}) == timings(0.95, 1.05)
    answers = [timings(1, 1), timings(0.7, 1.3), timings(0.1, 2)]
    assert planning.time_together(QUICK, {}) == timings(0.7, 1.3)


def test_equal_width_is_said() -> None:
    assert "equal width" in honest_notes(MACHINE | {"isa": "avx2"})[0]
    intel = MACHINE | {"cpu": "Intel Xeon"}
    assert not any("MKL" in note for note in honest_notes(intel))


def test_plan_covers_the_table() -> None:
    topics = (TOPIC, TRANSPORT, PROX)
    planned = [job for t in topics for build in t.builders for job in build(t.full)]
    keys = [key for job in planned for key in job.keys]
    assert len(set(keys)) == len(keys)
    assert {job.group for job in planned} == {group for t in topics for group in t.groups}
    assert TOPIC.full is FULL
    layers = {key for key in keys if key[0] in (FORWARD, BOTH) and key[3] == "float32"}
    # 3 shapes, 10 patterns, 2 numbers of threads, 2 topics; and the decoding forward.
    assert len(layers) == 120 + 2


def _fake_job(threads: int, log: list[int], interrupt: bool = False) -> Job:
    def measure(errors: list[str]) -> list[Record]:
        if interrupt:
            raise KeyboardInterrupt
        log.append(torch.get_num_threads())
        return [made(threads=threads)]

    return Job("calls", "fake", threads, [made(threads=threads).key], measure)


def test_an_interrupted_run_keeps_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log: list[int] = []
    interrupted = True
    fakes = (lambda plan: iter([_fake_job(1, log), _fake_job(2, log, interrupted)]),)
    topic = replace(TOPIC, builders=fakes)
    monkeypatch.setattr(run.machine, "available_cores", lambda: 2)
    monkeypatch.setattr(run.machine, "facts", lambda _: MACHINE)
    with open("/dev/null", "w") as sink:  # noqa: PTH123
        console = Console(file=sink)
        options = Options(out=tmp_path)
        again = replace(options, resume=True)
        assert run_topic(topic, options, console) == run.INTERRUPTED
        (path,) = tmp_path.glob("*.json")
        kept = Results.load(path)
        assert len(kept.records) == 1
        assert not kept.complete
        interrupted = False
        assert run_topic(topic, again, console) == 0
        assert log == [1, 2]
        assert Results.load(path).complete
        with pytest.raises(CheckpointError, match="another quick"):
            run_topic(topic, replace(again, quick=True), console)
        run_topic(topic, options, console)  # without --resume: all anew
        assert log == [1, 2, 1, 2]


def test_isa_is_forced_and_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run.machine, "facts", lambda _: MACHINE)
    before = gossamer.isa()
    seen = []
    monkeypatch.setattr(run, "_measure", lambda *_: seen.append(gossamer.isa()) or False)
    with open("/dev/null", "w") as sink:  # noqa: PTH123
        options = Options(isa="portable", only=("calls",), out=tmp_path)
        run_topic(TOPIC, options, Console(file=sink))
    assert seen == ["portable"]
    assert gossamer.isa() == before


@pytest.mark.parametrize(
    "options",
    [["--threads", "0"], ["--threads", "x"], ["--only", "nothing"], ["--what"], ["no-topic"]],
)
def test_bad_options(options: list[str]) -> None:
    done = CliRunner().invoke(app, options, prog_name="python -m bench")
    assert done.exit_code == 2
    assert "Usage: python -m bench" in done.output


@pytest.mark.parametrize("topic", GROUPS)
def test_the_groups_of_a_topic_are_those_of_the_command_line(topic: str) -> None:
    assert runner(topic).args[0].groups == GROUPS[topic]


def test_only_some_groups_run_their_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, tuple[str, ...]]] = []

    def fake(topic: str) -> Callable[[Options, Console], int]:
        return lambda options, _: ran.append((topic, options.only)) or 0

    monkeypatch.setattr(cli, "runner", fake)
    assert CliRunner().invoke(app, ["--only", "making,changing"]).exit_code == 0
    assert ran == [("masks", ("making", "changing"))]
    ran.clear()
    assert CliRunner().invoke(app, []).exit_code == 0
    assert [topic for topic, _ in ran] == list(TOPICS)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_found(topic: str) -> None:
    assert runner(topic).args[0].name == topic


def test_more_threads_than_cores() -> None:
    with pytest.raises(ArgumentError, match="choose at most"):
        run_topic(TOPIC, Options(threads=(4096,)), Console())


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_results_of_earlier_runs_are_read(path: Path) -> None:
    found = Results.load(path)
    assert found.records
    topic = next(
        t
        for t in (ACTIVATIONS, CONVOLUTIONS, TRANSPORT, PROX, MASKS, MODELS, WEIGHTS, TOPIC)
        if found.path.stem.endswith(t.suffix)
    )
    assert topic.page(found).tables


@pytest.mark.parametrize(
    ("family", "model", "name", "expected"),
    [
        (26, 2, "AMD EPYC", "AMD EPYC Zen 5"),
        (25, 17, "AMD EPYC", "AMD EPYC Zen 4"),
        (25, 1, "AMD EPYC", "AMD EPYC Zen 3"),
        (23, 49, "AMD EPYC", "AMD EPYC Zen 2"),
        (23, 1, "AMD EPYC", "AMD EPYC Zen 1"),
        (99, 1, "AMD EPYC", "AMD EPYC"),
        (25, 17, "AMD EPYC 9654 96-Core Processor", "AMD EPYC 9654 96-Core Processor"),
        (6, 143, "Intel(R) Xeon(R) Processor", "Intel(R) Xeon(R) Processor"),
    ],
)
def test_a_name_without_a_model_gets_its_generation(
    monkeypatch: pytest.MonkeyPatch, family: int, model: int, name: str, expected: str
) -> None:
    text = f"cpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert cpu_name() == expected
