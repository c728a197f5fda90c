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

__all__ = ["COLOURS", "Axes", "Figure", "FigureCanvasAgg"]

# Okabe & Ito's colours, distinct for colour-blind readers too; dense is first, near-black.
COLOURS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
