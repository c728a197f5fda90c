"""The bench's logic: ratios, bars, files, tables and options. No test depends on a time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import gossamer
from bench.cli import GROUPS, TOPICS, app, runner
from bench.harness import plan as planning
from bench.harness import run
from bench.harness.machine import honest_notes
from bench.harness.plan import Job
from bench.harness.record import GOSSAMER, Quartiles, Record, ratios
from bench.harness.results import Results
from bench.harness.run import Options, run_topic
from bench.harness.training import state_bytes
from bench.layers import TOPIC, bars, cases, jobs, overhead
from bench.layers.bars import BOTH, CALL, FORWARD, STATE
from bench.layers.cases import FULL, NN_LINEAR, QUICK, SPARSEPROP, Shape
from bench.layers.picture import plot, points
from bench.layers.tables import page
from bench.prox import TOPIC as PROX
from bench.transport import TOPIC as TRANSPORT
from gossamer.errors import ArgumentError, CheckpointError, GossamerError
from gossamer.timing import Timing

SMALL = Shape(6, 32, 16)
EARLIER = sorted((Path(__file__).parents[2] / "bench" / "results").glob("amd-*.json"))
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


def test_ratios_are_of_medians_with_quartiles_of_rounds() -> None:
    ours, theirs = Timing.from_samples([1.0, 2.0, 4.0]), Timing.from_samples([2.0, 6.0, 8.0])
    found = ratios({"ours": ours, "theirs": theirs}, "ours")
    assert found == {"theirs": Quartiles(3.0, 2.0, 2.5, 3)}


@pytest.mark.parametrize(
    ("record", "met"),
    [
        (made(nn_Linear=4.6), True),
        (made(nn_Linear=4.59), False),
        (made(BOTH, nn_Linear=4.3), True),
        (made(SparseProp=2.5), False),
        (made(BOTH, SparseProp=2.5), True),
        (made(FORWARD, "2:4:v8", str(cases.DECODING), nn_Linear=1.7), True),
        (made(CALL, "2:4:v4", "1x8x8", subject=25e-6, nn_Linear=4e-6), False),
        (made(CALL, "2:4:v4", "1x8x8", subject=23e-6, nn_Linear=4e-6), True),
        (made(STATE, "2:4:v4", "8x8", subject=56.0, unit="B", nn_Linear=100.0), False),
        (made(STATE, "2:4:v4", "8x8", subject=55.0, unit="B", nn_Linear=100.0), True),
        (made(dtype="bfloat16", **{bars.FLOAT32: 0.8}), True),
        (made(dtype="bfloat16", **{bars.FLOAT32: 0.79}), False),
        (made(bars.TRAIN_STEP, "1:8:v4", "GPT", dense=0.9), False),
    ],
)
def test_bars(record: Record, met: bool) -> None:
    (verdict,) = bars.verdicts([record])
    assert verdict.met is met


def test_no_bar_where_none_was_set() -> None:
    nowhere = [
        made(pattern="50%"),
        made(shape="1x2x3"),
        made(dtype="bfloat16"),
        made(STATE, "90%", "8x8", unit="B"),
    ]
    assert not bars.verdicts(nowhere)


def test_every_planned_layer_has_its_bars() -> None:
    """To nn.Linear all patterns but 50 %, to SparseProp all unstructured ones."""
    have = {(b.topic, *b.patterns, *b.against) for b in bars.BARS}
    for topic in (FORWARD, BOTH):
        for pattern in cases.PATTERNS:
            assert ((topic, pattern, NN_LINEAR) in have) is (pattern != "50%")
            assert ((topic, pattern, SPARSEPROP) in have) is (pattern in cases.UNSTRUCTURED)


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


def test_tables_show_what_is_met_and_missed(tmp_path: Path) -> None:
    found = results(
        tmp_path / "r.json",
        made(nn_Linear=4.7, SparseProp=2.0),
        made(pattern="50%"),
        made(bars.SPMM, torch=3.0),
        made(CALL, "2:4:v4", "1x8x8", subject=20e-6, nn_Linear=4e-6),
    )
    text = page(found).markdown()
    assert "| 90% | 4.6 | 4.70 ✓ |" in text
    assert "| 90% | 2.6 | 2.00 ✗ |" in text
    assert "| 50% | – | 5.00 |" in text
    assert "+16.0 µs ✓ | ≤ 20 µs |" in text
    assert "2 of 3 bars met (✓), 1 missed (✗)" in text
    assert "- missed: forward, 512×768×3072, 90%, 1 thread: 2.00 to SparseProp, bar ≥ 2.6" in text
    assert "256-bit" in text
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    page(found).show(console)
    console.file.close()
    shown = console.export_text()
    assert "4.70 ✓" in shown
    assert "2.00 ✗" in shown


def test_a_disturbed_measurement_is_marked(tmp_path: Path) -> None:
    steady = made(nn_Linear=4.7)
    measured = steady.measured | {NN_LINEAR: Quartiles(4.7, 4.2, 5.2, 9)}
    found = results(tmp_path / "r.json", replace(steady, measured=measured))
    text = page(found).markdown()
    assert "| 4.70~ ✓ |" in text
    assert "1 of 1 measurements were disturbed" in text


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


def test_picture(tmp_path: Path) -> None:
    found = results(tmp_path / "r.json", made(), made(BOTH), made(pattern="2:4:v4"))
    assert set(points(found.records, FORWARD)) == {"unstructured", "N:M, 4 rows share columns"}
    plot(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_jobs_give_the_records_they_promise() -> None:
    scope = replace(QUICK.scope, shapes=(SMALL,), patterns=("2:4", "50%"), calls=1)
    plan = replace(QUICK, scope=scope, seconds=0.0, rounds=(1, 1))
    builders = (jobs.case_jobs, jobs.half_jobs, overhead.call_jobs)
    for builder in builders:
        for job in builder(plan):
            if "90%" in job.title:
                continue  # 51.2 of 512 entries: fine for the plan's shapes, not for this one
            records = job.run(errors := [])
            assert [record.key for record in records] == job.keys
            assert not errors


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


def test_the_groups_of_layers_are_those_of_the_command_line() -> None:
    assert TOPIC.groups == GROUPS


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_found(topic: str) -> None:
    assert runner(topic).args[0].name == topic


def test_more_threads_than_cores() -> None:
    with pytest.raises(ArgumentError, match="choose at most"):
        run_topic(TOPIC, Options(threads=(4096,)), Console())


def test_state_is_counted_whole() -> None:
    layer = torch.nn.Linear(8, 4)
    layer(torch.ones(1, 8)).sum().backward()
    optimizer = torch.optim.AdamW(layer.parameters())
    optimizer.step()
    steps = sum(state["step"].nbytes for state in optimizer.state.values())
    assert state_bytes(layer, optimizer) == 4 * 36 * 4 + steps


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_results_of_earlier_runs_are_read(path: Path) -> None:
    found = Results.load(path)
    assert found.records
    topic = next(t for t in (TRANSPORT, PROX, TOPIC) if found.path.stem.endswith(t.suffix))
    assert topic.page(found).tables
