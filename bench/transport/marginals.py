"""How wrong a plan is: the L1 error of its marginals. Loaded by the workers without its package."""

from typing import Any

import numpy as np


def error(answer: Any, C: Any, a: Any, b: Any, *_: Any) -> float:
    """|P 1 - a|_1 + |P' 1 - b|_1 of what a solver returned, as the worker asks for it."""
    return marginal_error(answer, a, b)


def marginal_error(answer: Any, a: Any, b: Any) -> float:
    """|P 1 - a|_1 + |P' 1 - b|_1 of what a solver returned.

    Args:
        answer: the plan [n, m], or an object whose ``marginals()`` gives P 1 and P' 1.
        a: [n].
        b: [m].

    Returns:
        The error; infinite when an entry is not finite or negative.
    """
    if hasattr(answer, "marginals"):
        rows, columns = answer.marginals()
    else:
        plan = np.asarray(answer)
        if plan.shape != (len(a), len(b)) or not plan.min() >= 0:
            return float("inf")
        rows, columns = plan.sum(1), plan.sum(0)
    error = float(np.abs(rows - a).sum() + np.abs(columns - b).sum())
    return error if np.isfinite(error) else float("inf")
