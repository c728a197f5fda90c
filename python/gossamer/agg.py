"""The parts of matplotlib that draw into a file, whatever MPLBACKEND names.

matplotlib cannot be imported under an unknown MPLBACKEND, and the drawing here needs none.
"""

import contextlib
import os
import sys

_chosen = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
finally:
    if _chosen is not None:
        os.environ["MPLBACKEND"] = _chosen
if _chosen is not None:
    with contextlib.suppress(ValueError):
        mpl.rcParams["backend"] = _chosen  # as matplotlib itself does for the caller's pyplot

__all__ = ["Axes", "Figure", "FigureCanvasAgg"]
