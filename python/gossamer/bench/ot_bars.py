"""What transport must reach with one thread, and whether a record does.

A rival that returned something else than the solution has no time and cannot meet or miss a bar;
one that was stopped meets it when it had run that many times longer than Gossamer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from gossamer.bench.ot_cases import ASSIGNMENT, POINTS, PUBLISHED_CASE, Cell
from gossamer.bench.ot_rivals import GOSSAMER, LAZY, POT, POT_LOG, PUBLISHED, REGOT
from gossamer.bench.results import Record

TRANSPORT, TRACE = "transport", "transport error"
LARGE, MEMORY = "transport lazy", "transport memory"
GIGABYTE = 1e9
# How the reason begins why a rival has no time: it was stopped, it ended by itself, it raised.
STOPPED, GAVE_UP, FAILED = "not done", "gave up", "failed"


@dataclass(frozen=True)
class Bar:
    """A bound on a cell.

    Args:
        rivals: the fastest of them that solves the cell is what counts.
        bound: at least this often faster than it.
        who: the rivals in words.
    """

    rivals: tuple[str, ...]
    bound: float
    who: str

    def __str__(self) -> str:
        return f"{self.who} ≥ {self.bound:.3g}×"


@dataclass(frozen=True)
class Verdict:
    """A record set beside a bar.

    Args:
        record: what was measured.
        bar: text of what it must reach.
        value: what was measured: a ratio, or bytes.
        met: whether it does; None if the rival was stopped too early to tell.
        floor: whether the value is only known to be at least that large.
    """

    record: Record
    bar: str
    value: float
    met: bool | None
    floor: bool = False

    @property
    def text(self) -> str:
        """The value in words."""
        if self.value == inf:
            return "nobody else solves it" if self.met else "not solved"
        if self.record.topic == MEMORY:
            return f"{self.value / 1e9:.2f} GB"
        return f"{'> ' if self.floor else ''}{self.value:.3g}×"


_POT = Bar((POT, POT_LOG), 0.0, "POT")
_KERNEL = Bar((POT,), 1 / 1.2, POT)


def _of(bar: Bar, bound: float) -> Bar:
    return Bar(bar.rivals, bound, bar.who)


_REGOT = Bar((REGOT,), 0.0, "regot")
_CELLS: dict[Cell, tuple[Bar, ...]] = {
    Cell(POINTS, 1000, 2e-4): (_of(_POT, 10), _of(_REGOT, 20)),
    Cell(ASSIGNMENT, 1000, 2e-4): (_of(_REGOT, 2.5), _of(_POT, 50)),
    Cell(POINTS, 1000, 1e-3): (_of(_POT, 6),),
    Cell(ASSIGNMENT, 1000, 1e-3): (_KERNEL,),
    PUBLISHED_CASE: (Bar((PUBLISHED,), 1.0, "literal method"), _of(_KERNEL, 30)),
}


def bars_of(cell: Cell) -> tuple[Bar, ...]:
    """The bars of a cell that speak of certain rivals.

    Args:
        cell: any.

    Returns:
        Its bars; every cell has, besides, that no rival that solves it is faster.

    Example:
        >>> [str(bar) for bar in bars_of(Cell("points", 1000, 2e-4))]
        ['POT ≥ 10×', 'regot ≥ 20×']
    """
    if cell.n == 1000 and cell.reg == 1e-2:
        return (_KERNEL,)
    return _CELLS.get(cell, ())


def bound_on(cell: Cell, rival: str) -> float:
    """How many times longer than Gossamer a rival must run before the cell's bars are decided."""
    return max((bar.bound for bar in bars_of(cell) if rival in bar.rivals), default=0.0)


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
            found += _judge(record)
        elif record.topic == MEMORY:
            held = record.measured[LAZY].median if LAZY in record.measured else inf
            found.append(Verdict(record, "memory < 1 GB", held, held < GIGABYTE))
    return found


def _judge(record: Record) -> list[Verdict]:
    solved = GOSSAMER in record.measured
    found = [] if solved else [Verdict(record, "converges", 0.0, False)]
    cell = cell_of(record)
    found += [v for bar in bars_of(cell) if (v := _beside(record, bar, solved))]
    peers = [name for name in record.measured if name not in (GOSSAMER, PUBLISHED)]
    fastest = min(peers, key=lambda name: record.measured[name].median, default=None)
    if solved and fastest:
        ratio = record.ratios[fastest].median
        found.append(Verdict(record, f"no rival faster ({fastest})", ratio, ratio >= 1))
    return found


def _beside(record: Record, bar: Bar, solved: bool) -> Verdict | None:
    values = [v for name in bar.rivals if (v := _ratio(record, name, solved)) is not None]
    if not values:
        return None
    if not solved:
        return Verdict(record, str(bar), 0.0, False)
    value, floor = min(values)
    if value >= bar.bound:
        return Verdict(record, str(bar), value, True, floor)
    exact = [v for v, is_floor in values if not is_floor and v < bar.bound]
    if exact:
        return Verdict(record, str(bar), min(exact), False)
    return Verdict(record, str(bar), value, None, True)


def _ratio(record: Record, rival: str, solved: bool) -> tuple[float, bool] | None:
    """The rival's time over ours and whether it is only a floor; None if it took no part."""
    if rival in record.measured:
        return (record.ratios[rival].median if solved else 0.0), False
    if rival in record.floors:
        return (record.floors[rival] / record.measured[GOSSAMER].median if solved else 0.0), True
    reason = record.skipped.get(rival, "")
    if reason.startswith(STOPPED):
        return 0.0, True
    return (inf, False) if reason.startswith((GAVE_UP, FAILED)) else None


def cell_of(record: Record) -> Cell:
    """The cell that a record is of.

    Args:
        record: of a cell.

    Returns:
        The cell.
    """
    family, _, reg = record.pattern.partition(", reg ")
    cell = Cell(family, int(record.shape.partition("x")[0]), float(reg.partition(",")[0]))
    # The text rounds 1/1200.
    same = (cell.shape, cell.pattern) == (PUBLISHED_CASE.shape, PUBLISHED_CASE.pattern)
    return PUBLISHED_CASE if same else cell
