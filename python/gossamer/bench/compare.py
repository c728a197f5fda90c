"""Measure Gossamer beside its rivals: layers, verbs, small batches and bfloat16.

A job is one interleaved run. Everybody who takes part is first verified on the very numbers that
are timed; a rival that is wrong is reported and left out, a wrong Gossamer ends the job.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from gossamer import backend
from gossamer.bench import cases, ot_cases, prox_cases
from gossamer.bench.bars import BOTH, FLOAT32, FORWARD, SDDMM, SPMM, SPMM_T
from gossamer.bench.cases import GOSSAMER, NN_LINEAR, Case, Problem, Shape
from gossamer.bench.results import UNSTEADY, Key, Record, Spread, ratios
from gossamer.bench.rivals import (
    Candidate,
    UnavailableError,
    WrongResultError,
    candidate,
    check_close,
    verify,
)
from gossamer.timing import Timing, interleaved
from gossamer.weight import SparseWeight

TORCH = "torch"

Fns = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        shapes: of the layers.
        patterns: of the layers.
        threads: numbers of threads.
        seconds: for one job, as far as `rounds` allows.
        rounds: least and most rounds of a job.
        train_rounds: rounds of the train step.
        calls: calls in one sample of the call overhead.
        transport: how much of optimal transport.
        prox: how much of the proximal operators.
    """

    shapes: tuple[Shape, ...] = cases.SHAPES
    patterns: tuple[str, ...] = cases.PATTERNS
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 1.2
    rounds: tuple[int, int] = (7, 101)
    train_rounds: int = 10
    calls: int = 300
    transport: ot_cases.Scope = ot_cases.FULL
    prox: prox_cases.Scope = prox_cases.FULL

    def rounds_for(self, round_seconds: float) -> int:
        """How many rounds fit, when one takes so long.

        Example:
            >>> [Plan().rounds_for(seconds) for seconds in (1.0, 0.125, 0.001)]
            [7, 9, 101]
        """
        least, most = self.rounds
        return max(least, min(most, int(self.seconds / round_seconds)))


# Everything once, as little as shows that it works; its numbers mean little.
QUICK = Plan(
    shapes=cases.SHAPES[:1],
    patterns=("2:4:v4", "90%"),
    threads=(1,),
    seconds=0.2,
    rounds=(3, 11),
    train_rounds=2,
    calls=50,
    transport=ot_cases.QUICK,
    prox=prox_cases.QUICK,
)


@dataclass
class Job:
    """One interleaved run of the plan.

    Args:
        group: which part of the bench it belongs to.
        title: shown while it runs.
        threads: number of threads to run it with.
        keys: of the records it will give.
        run: measures; appends what went wrong with a rival to its argument.
    """

    group: str
    title: str
    threads: int
    keys: list[Key]
    run: Callable[[list[str]], list[Record]] = field(repr=False)


def time_together(plan: Plan, fns: Fns, before: Fns | None = None) -> dict[str, Timing]:
    """Time functions that have just run once, as long as the plan allows.

    A run that other work on the machine disturbed is done once more, and the steadier of the two
    counts: they are told apart by their spread, never by their result.

    Args:
        plan: gives the number of rounds.
        fns: by name.
        before: what to call before each call of a function, outside of its time; by name.

    Returns:
        A timing for each.
    """
    probe = interleaved(fns, repeats=1, warmup=0, before=before)
    rounds = plan.rounds_for(sum(timing.median for timing in probe.values()))
    timings = interleaved(fns, repeats=rounds, warmup=0, before=before)
    if unsteadiness(timings) > UNSTEADY:
        again = interleaved(fns, repeats=rounds, warmup=0, before=before)
        timings = min(timings, again, key=unsteadiness)
    return timings


def unsteadiness(timings: Mapping[str, Timing]) -> float:
    """The widest of the timings: its quartiles' distance over its median.

    Example:
        >>> unsteadiness({"ours": Timing.from_samples([1.0, 2.0, 3.0])})
        0.5
    """
    return max((t.quartiles[1] - t.quartiles[0]) / t.median for t in timings.values())


def case_jobs(plan: Plan) -> Iterator[Job]:
    """Every shape and pattern: the layer forward, with all three gradients, and the three verbs.

    Jobs of one case follow each other, so that it is built once.
    """
    for shape in plan.shapes:
        for pattern in plan.patterns:
            case = Case(shape, pattern)
            for threads in plan.threads:
                for topic in (FORWARD, BOTH):
                    yield _layer_job(plan, "layers", case, threads, topic)
                yield _verb_job(plan, case, threads)


def decoding_jobs(plan: Plan) -> Iterator[Job]:
    """Forward at batch 1, where the weight is read from memory once."""
    case = Case(cases.DECODING, cases.DECODING_PATTERN)
    for threads in plan.threads:
        yield _layer_job(plan, "decoding", case, threads, FORWARD)


def half_jobs(plan: Plan) -> Iterator[Job]:
    """bfloat16 beside our own float32."""
    for shape in plan.shapes:
        for pattern in cases.HALF_PATTERNS:
            for threads in plan.threads:
                case = Case(shape, pattern, torch.bfloat16)
                for topic in (FORWARD, BOTH):
                    yield _job("bfloat16", case, threads, topic, partial(_half, plan))


def _verb_job(plan: Plan, case: Case, threads: int) -> Job:
    """The three products by themselves, without autograd, beside torch's."""
    return Job(
        "verbs",
        f"verbs {case.shape} {case.pattern}, threads: {threads}",
        threads,
        [_key(topic, case, threads) for topic in (SPMM, SPMM_T, SDDMM)],
        partial(_verbs, replace(plan, seconds=plan.seconds / 3), case, threads),
    )


def _layer_job(plan: Plan, group: str, case: Case, threads: int, topic: str) -> Job:
    return _job(group, case, threads, topic, partial(_layer, plan))


def _job(
    group: str,
    case: Case,
    threads: int,
    topic: str,
    measure: Callable[[Case, int, str, list[str]], list[Record]],
) -> Job:
    return Job(
        group,
        f"{topic} {case.shape} {case.pattern}, threads: {threads}",
        threads,
        [_key(topic, case, threads)],
        partial(measure, case, threads, topic),
    )


def _layer(plan: Plan, case: Case, threads: int, topic: str, errors: list[str]) -> list[Record]:
    problem = cases.build(case)
    names = (NN_LINEAR, GOSSAMER, *cases.rivals_of(case.pattern))
    taking_part, skipped = verified(names, problem, topic == BOTH, errors)
    timings = time_together(plan, runners(taking_part, problem, topic))
    return [record(case, threads, topic, timings, skipped)]


def _half(plan: Plan, case: Case, threads: int, topic: str, errors: list[str]) -> list[Record]:
    half, single = cases.build(case), cases.build(Case(case.shape, case.pattern))
    backward = topic == BOTH
    taking_part, skipped = verified((NN_LINEAR, GOSSAMER), half, backward, errors)
    fns = runners(taking_part, half, topic)
    # Our float32 is measured only where bfloat16 is at most as good: a rival, under its own name.
    ours, _ = verified((GOSSAMER,), single, backward, errors)
    fns[FLOAT32] = runners(ours, single, topic)[GOSSAMER]
    return [record(case, threads, topic, time_together(plan, fns), skipped)]


def verified(
    names: Sequence[str], problem: Problem, backward: bool, errors: list[str]
) -> tuple[list[Candidate], dict[str, str]]:
    """Build candidates and verify each.

    Args:
        names: of the candidates.
        problem: on what.
        backward: whether gradients will be timed, and so are verified.
        errors: a wrong rival is appended to it.

    Returns:
        Those that are right, and for each other name why it does not take part.

    Raises:
        WrongResultError: Gossamer is wrong.
    """
    good, skipped = [], {}
    for name in names:
        try:
            built = candidate(name, problem)
            verify(built, problem, backward)
            good.append(built)
        except UnavailableError as reason:
            skipped[name] = str(reason)
        except WrongResultError as error:
            if name == GOSSAMER:
                raise
            skipped[name] = str(error)
            errors.append(str(error))
    return good, skipped


def runners(taking_part: Sequence[Candidate], problem: Problem, topic: str) -> Fns:
    """What is timed: one call a candidate.

    Args:
        taking_part: verified candidates.
        problem: on what they run.
        topic: ``FORWARD`` without a graph, or ``BOTH``.

    Returns:
        Functions by the candidates' names.
    """
    if topic == FORWARD:
        return {one.name: partial(one.forward, problem) for one in taking_part}
    return {one.name: partial(one.step, problem) for one in taking_part}


def verb_runners(case: Case) -> dict[str, Fns]:
    """The three products of a case, verified, each beside torch's dense one.

    Args:
        case: what to build.

    Returns:
        Topic -> functions by name.

    Raises:
        WrongResultError: a product differs from the dense formula.
    """
    problem = cases.build(case)
    expected = problem.expected
    dense, bias = problem.linear.weight.detach(), problem.linear.bias.detach()
    x, grad_output = problem.x.detach(), problem.grad_output
    weight = SparseWeight.from_dense(dense, case.pattern, mask=problem.mask)
    values, structure, transposed = weight.values.detach(), weight.structure, weight.transposed

    def spmm() -> Tensor:
        return torch.as_tensor(backend.spmm(x, values, structure, bias))

    def spmm_t() -> Tensor:
        return torch.as_tensor(backend.spmm_t(grad_output, values, structure, transposed))

    def sddmm() -> Tensor:
        return torch.as_tensor(backend.sddmm(grad_output, x, structure))

    who = f"{GOSSAMER}, {case.pattern}:"
    check_close(f"{who} spmm", spmm(), expected.output)
    check_close(f"{who} spmm_t", spmm_t(), expected.grad_input)
    grad_weight = torch.as_tensor(backend.scatter(sddmm(), structure))
    check_close(f"{who} sddmm", grad_weight, expected.grad_weight)
    return {
        SPMM: {
            GOSSAMER: spmm,
            TORCH: lambda: torch.nn.functional.linear(x, dense, bias),
        },
        SPMM_T: {GOSSAMER: spmm_t, TORCH: lambda: grad_output @ dense},
        SDDMM: {GOSSAMER: sddmm, TORCH: lambda: grad_output.T @ x},
    }


def _verbs(plan: Plan, case: Case, threads: int, errors: list[str]) -> list[Record]:
    return [
        record(case, threads, topic, time_together(plan, fns), {})
        for topic, fns in verb_runners(case).items()
    ]


def record(
    case: Case, threads: int, topic: str, timings: dict[str, Timing], skipped: dict[str, str]
) -> Record:
    """Make a record of the timings of one interleaved run.

    Args:
        case: what was run.
        threads: with how many threads.
        topic: what was timed.
        timings: by candidate; Gossamer among them.
        skipped: who did not take part, and why.

    Returns:
        The record.
    """
    return Record(
        *_key(topic, case, threads),
        density=case.density,
        subject=GOSSAMER,
        unit="s",
        measured={name: Spread.of(timing) for name, timing in timings.items()},
        ratios=ratios(timings, GOSSAMER),
        useful_flops=case.useful_flops * (3 if topic == BOTH else 1),
        skipped=skipped,
    )


def _key(topic: str, case: Case, threads: int) -> Key:
    dtype = str(case.dtype).removeprefix("torch.")
    return (topic, str(case.shape), case.pattern, dtype, threads)
