"""Numbers as a reader wants them: three digits and a unit."""


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
