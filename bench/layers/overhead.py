"""What a layer costs besides its products: the call, the bytes, and a whole train step."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.harness.plan import Job, Plan, time_together
from bench.harness.record import GOSSAMER, Quartiles, Record
from bench.harness.training import SEED, VOCABULARY, state_bytes
from bench.layers import cases
from bench.layers.bars import CALL, CALL_GRAD, DENSE, STATE, TRAIN_STEP
from bench.layers.cases import NN_LINEAR, Case, Scope
from bench.layers.jobs import verified
from bench.layers.rivals import Candidate, candidate, check_close
from gossamer import densify
from gossamer.timing import Timing, interleaved
from gossamer.train import DEMO, GPT, Run


def call_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """What one call costs when there is next to nothing to compute."""
    for shape in cases.CALL_SHAPES:
        for topic in (CALL, CALL_GRAD):
            for threads in plan.threads:
                case = Case(shape, cases.CALL_PATTERN)
                yield Job(
                    "calls",
                    f"{topic} {shape}, threads: {threads}",
                    threads,
                    [(topic, str(shape), case.pattern, "float32", threads)],
                    partial(_calls, plan, case, threads, topic),
                )


def _calls(
    plan: Plan[Scope], case: Case, threads: int, topic: str, errors: list[str]
) -> list[Record]:
    problem = cases.build(case)
    taking_part, _ = verified((NN_LINEAR, GOSSAMER), problem, topic == CALL_GRAD, errors)
    x = problem.x

    def looped(one: Candidate) -> Callable[[], object]:
        layer, times = one.layer, range(plan.scope.calls)

        def run() -> None:
            with torch.set_grad_enabled(topic == CALL_GRAD):
                for _ in times:
                    layer(x)

        return run

    timings = time_together(plan, {one.name: looped(one) for one in taking_part})
    per_call = {
        name: Timing.from_samples([sample / plan.scope.calls for sample in timing.samples])
        for name, timing in timings.items()
    }
    key = (topic, str(case.shape), case.pattern, "float32", threads)
    return [Record.timed(key, per_call, density=case.density)]


def state_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """Bytes that training a layer with AdamW keeps: counted, not timed."""
    for pattern in cases.STATE_PATTERNS:
        case = Case(cases.STATE_SHAPE, pattern)
        yield Job(
            "state",
            f"{STATE} {pattern}",
            plan.threads[0],
            [(STATE, _sizes(case), pattern, "float32", plan.threads[0])],
            partial(_state, case, plan.threads[0]),
        )


def _state(case: Case, threads: int, errors: list[str]) -> list[Record]:
    problem = cases.build(case)
    used = {}
    for name in (NN_LINEAR, GOSSAMER):
        one = candidate(name, problem)
        layer = one.layer
        assert isinstance(layer, nn.Module)
        optimizer = torch.optim.AdamW(layer.parameters())
        one.step(problem)
        optimizer.step()
        used[name] = Quartiles.exactly(state_bytes(layer, optimizer))
    ratio = Quartiles.exactly(used[NN_LINEAR].median / used[GOSSAMER].median)
    return [
        Record(
            STATE,
            _sizes(case),
            case.pattern,
            "float32",
            threads,
            case.density,
            GOSSAMER,
            "B",
            used,
            {NN_LINEAR: ratio},
        )
    ]


def _sizes(case: Case) -> str:
    return f"{case.shape.in_features}x{case.shape.out_features}"


def train_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """A step of the demo: loss, gradients, clipping and AdamW of a whole GPT."""
    shape = f"GPT {DEMO.width}x{DEMO.depth}, {DEMO.batch}x{DEMO.context}"
    for threads in plan.threads:
        sparse = [name for name in DEMO.runs if name != DENSE]
        yield Job(
            "train",
            f"{TRAIN_STEP} {shape}, threads: {threads}",
            threads,
            [(TRAIN_STEP, shape, pattern, "float32", threads) for pattern in sparse],
            partial(_train, plan, shape, threads),
        )


def _train(plan: Plan[Scope], shape: str, threads: int, errors: list[str]) -> list[Record]:
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(VOCABULARY, (DEMO.batch, DEMO.context + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    runs = {name: Run(name, DEMO, VOCABULARY) for name in DEMO.runs}
    for name, run in runs.items():
        if name != DENSE:
            _check_model(run, inputs, targets)
    timings = interleaved(
        {name: partial(run.step, inputs, targets) for name, run in runs.items()},
        repeats=plan.scope.train_rounds,
    )
    return [
        Record.timed(
            (TRAIN_STEP, shape, name, "float32", threads),
            {who: timings[who] for who in (DENSE, name)},
            density=run.density,
            subject=name,
        )
        for name, run in runs.items()
        if name != DENSE
    ]


def _check_model(run: Run, inputs: Tensor, targets: Tensor) -> None:
    """The sparse model's loss is that of its dense copy; the layers' gradients are `verified`."""
    sparse, dense = run.model, densify(copy.deepcopy(run.model))
    assert isinstance(dense, GPT)
    with torch.no_grad():
        ours = sparse.loss(inputs, targets).reshape(1)
        wanted = dense.loss(inputs, targets).reshape(1)
    check_close(f"{GOSSAMER}, loss of the {run.name} model", ours, wanted)
