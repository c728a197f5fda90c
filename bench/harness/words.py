"""Numbers as a reader wants them: three digits and a unit; means with what they spread."""

from collections.abc import Sequence
from statistics import fmean, stdev


def times(value: float) -> str:
    """A ratio.

    Example:
        >>> times(0.8123), times(12.34), times(1234.5)
        ('0.812×', '12.3×', '1234×')
    """
    return f"{value:.0f}×" if value >= 100 else f"{value:.3g}×"


def seconds(value: float) -> str:
    """A time of a millisecond or more.

    Example:
        >>> seconds(0.01234), seconds(1.5)
        ('12.3 ms', '1.50 s')
    """
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def brief(value: float) -> str:
    """A time of any length.

    Example:
        >>> brief(1.23e-5), brief(0.0123)
        ('12.3 µs', '12.3 ms')
    """
    return f"{value * 1e6:.3g} µs" if value < 0.9995e-3 else seconds(value)


def threads_text(count: int) -> str:
    """A number of threads.

    Example:
        >>> threads_text(1), threads_text(2)
        ('1 thread', '2 threads')
    """
    return "1 thread" if count == 1 else f"{count} threads"


def spread(values: Sequence[float], digits: int = 1, *, percent: bool = False) -> str:
    """A mean, and the standard deviation if there are two values or more.

    Example:
        >>> spread([1.0, 2.0]), spread([0.125], 3), spread([0.5, 0.75], percent=True), spread([])
        ('1.5 ± 0.7', '0.125', '62.5 ± 17.7', '–')
    """
    if not values:
        return "–"
    unit = 100 if percent else 1
    behind = f" ± {unit * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{unit * fmean(values):.{digits}f}{behind}"
