"""Jobs of the layers' bench: layers, verbs, small batches and bfloat16.

Every candidate is first verified on the very numbers that are timed; a rival that is wrong is
reported and left out, a wrong Gossamer ends the job.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.harness.contest import UnavailableError, WrongResultError
from bench.harness.plan import Calls, Job, Plan, time_together
from bench.harness.record import GOSSAMER, Key, Record
from bench.layers import cases
from bench.layers.bars import BOTH, FLOAT32, FORWARD, SDDMM, SPMM, SPMM_T
from bench.layers.cases import NN_LINEAR, Case, Problem, Scope
from bench.layers.rivals import Candidate, candidate, check_close, verify
from gossamer import SparseWeight, backend
from gossamer.timing import Timing

TORCH = "torch"


def case_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """Every shape and pattern: the layer forward, with all three gradients, and the three verbs.

    Jobs of one case follow each other, so that it is built once.
    """
    for shape in plan.scope.shapes:
        for pattern in plan.scope.patterns:
            case = Case(shape, pattern)
            for threads in plan.threads:
                for topic in (FORWARD, BOTH):
                    yield _layer_job(plan, "layers", case, threads, topic)
                yield _verb_job(plan, case, threads)


def decoding_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """Forward at batch 1, where the weight is read from memory once."""
    case = Case(cases.DECODING, cases.DECODING_PATTERN)
    for threads in plan.threads:
        yield _layer_job(plan, "decoding", case, threads, FORWARD)


def half_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """bfloat16 beside torch's, and beside our own float32."""
    for shape in plan.scope.shapes:
        for pattern in cases.HALF_PATTERNS:
            for threads in plan.threads:
                case = Case(shape, pattern, torch.bfloat16)
                for topic in (FORWARD, BOTH):
                    yield _job("bfloat16", case, threads, topic, partial(_half, plan))


def _verb_job(plan: Plan[Scope], case: Case, threads: int) -> Job:
    """The three products by themselves, without autograd, beside torch's."""
    return Job(
        "verbs",
        f"verbs {case.shape} {case.pattern}, threads: {threads}",
        threads,
        [_key(topic, case, threads) for topic in (SPMM, SPMM_T, SDDMM)],
        partial(_verbs, replace(plan, seconds=plan.seconds / 3), case, threads),
    )


def _layer_job(plan: Plan[Scope], group: str, case: Case, threads: int, topic: str) -> Job:
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


def _layer(
    plan: Plan[Scope], case: Case, threads: int, topic: str, errors: list[str]
) -> list[Record]:
    problem = cases.build(case)
    names = (NN_LINEAR, GOSSAMER, *cases.rivals_of(case.pattern))
    taking_part, skipped = verified(names, problem, topic == BOTH, errors)
    timings = time_together(plan, runners(taking_part, problem, topic))
    return [_record(case, threads, topic, timings, skipped)]


def _half(
    plan: Plan[Scope], case: Case, threads: int, topic: str, errors: list[str]
) -> list[Record]:
    half, single = cases.build(case), cases.build(Case(case.shape, case.pattern))
    backward = topic == BOTH
    taking_part, skipped = verified((NN_LINEAR, GOSSAMER), half, backward, errors)
    calls = runners(taking_part, half, topic)
    # Our float32 is measured only where bfloat16 is at most as good: a rival, under its own name.
    ours, _ = verified((GOSSAMER,), single, backward, errors)
    calls[FLOAT32] = runners(ours, single, topic)[GOSSAMER]
    return [_record(case, threads, topic, time_together(plan, calls), skipped)]


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


def runners(taking_part: Sequence[Candidate], problem: Problem, topic: str) -> Calls:
    """What is timed: one call per candidate.

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


def verb_runners(case: Case) -> dict[str, Calls]:
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


def _verbs(plan: Plan[Scope], case: Case, threads: int, errors: list[str]) -> list[Record]:
    return [
        _record(case, threads, topic, time_together(plan, calls), {})
        for topic, calls in verb_runners(case).items()
    ]


def _record(
    case: Case, threads: int, topic: str, timings: dict[str, Timing], skipped: dict[str, str]
) -> Record:
    return Record.timed(
        _key(topic, case, threads),
        timings,
        density=case.density,
        useful_flops=case.useful_flops * (3 if topic == BOTH else 1),
        skipped=skipped,
    )


def _key(topic: str, case: Case, threads: int) -> Key:
    dtype = str(case.dtype).removeprefix("torch.")
    return (topic, str(case.shape), case.pattern, dtype, threads)
