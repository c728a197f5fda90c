"""What transport must reach with one thread.

A rival that returned something else than the solution has no time and cannot meet or miss a bar;
one that was stopped meets it when it had run that many times longer than Gossamer.
"""

from collections.abc import Iterable

from bench.harness.bars import Bar, Verdict, judge
from bench.harness.record import GOSSAMER, Record
from bench.transport.cases import ASSIGNMENT, POINTS, PUBLISHED_CASE, Case
from bench.transport.solvers import POT, POT_LOG, PUBLISHED, REGOT

TRANSPORT, TRACE = "transport", "transport error"
LARGE, MEMORY = "transport lazy", "transport memory"
GIGABYTE = 1_000_000_000


def _bar(who: str, bound: float, *rivals: str) -> Bar:
    return Bar(TRANSPORT, rivals or (who,), bound, words=f"{who} ≥ {bound:.3g}×")


_KERNEL = _bar(POT, 1 / 1.2)
_CASES: dict[Case, tuple[Bar, ...]] = {
    Case(POINTS, 1000, 2e-4): (_bar("POT", 10, POT, POT_LOG), _bar("regot", 20, REGOT)),
    Case(ASSIGNMENT, 1000, 2e-4): (_bar("regot", 2.5, REGOT), _bar("POT", 50, POT, POT_LOG)),
    Case(POINTS, 1000, 1e-3): (_bar("POT", 6, POT, POT_LOG),),
    Case(ASSIGNMENT, 1000, 1e-3): (_KERNEL,),
    PUBLISHED_CASE: (_bar("literal method", 1.0, PUBLISHED), _bar(POT, 30)),
}
_CONVERGES = Bar(TRANSPORT, (), 0.0, words="converges")
_SMALL = Bar(MEMORY, (), GIGABYTE - 1, "count", words="memory < 1 GB")


def bars_of(case: Case) -> tuple[Bar, ...]:
    """The bars of a case that name their rivals.

    Args:
        case: any.

    Returns:
        Its bars; every case has, besides, that no rival that solves it is faster.

    Example:
        >>> [bar.words for bar in bars_of(Case("points", 1000, 2e-4))]
        ['POT ≥ 10×', 'regot ≥ 20×']
    """
    if case.n == 1000 and case.reg == 1e-2:
        return (_KERNEL,)
    return _CASES.get(case, ())


def bound_on(case: Case, rival: str) -> float:
    """How many times longer than Gossamer a rival must run before the case's bars are decided."""
    return max((bar.bound for bar in bars_of(case) if rival in bar.against), default=0.0)


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """Set every record beside its bars.

    Args:
        records: of the transport part.

    Returns:
        Verdicts in the order of the records.
    """
    found = []
    for record in records:
        if record.topic == TRANSPORT and record.threads == 1:
            found += _judged(record)
        elif verdict := judge(record, _SMALL) if record.topic == MEMORY else None:
            found.append(verdict)
    return found


def _judged(record: Record) -> list[Verdict]:
    solved = GOSSAMER in record.measured
    found = [] if solved else [Verdict(record, _CONVERGES, 0.0, False)]
    found += [v for bar in bars_of(case_of(record)) if (v := judge(record, bar))]
    peers = [name for name in record.measured if name not in (GOSSAMER, PUBLISHED)]
    fastest = min(peers, key=lambda name: record.measured[name].median, default=None)
    if solved and fastest:
        bar = Bar(TRANSPORT, (fastest,), 1.0, words=f"no rival faster ({fastest})")
        found += [v for v in [judge(record, bar)] if v]
    return found


def case_of(record: Record) -> Case:
    """The case that a record is of.

    Args:
        record: of a case.

    Returns:
        The case.
    """
    family, _, reg = record.pattern.partition(", reg ")
    case = Case(family, int(record.shape.partition("x")[0]), float(reg.partition(",")[0]))
    # The text rounds 1/1200.
    same = (case.shape, case.pattern) == (PUBLISHED_CASE.shape, PUBLISHED_CASE.pattern)
    return PUBLISHED_CASE if same else case
