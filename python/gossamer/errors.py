"""The errors that Gossamer raises on purpose.

Every message has one form: what was given, what is needed, what to do. Each class also derives
from the built-in error that a caller would expect, so `except ValueError` catches a bad pattern
without importing this module.
"""

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConvergenceWarning",
    "DTypeError",
    "DataError",
    "DeviceError",
    "GossamerDeprecationWarning",
    "GossamerError",
    "NotOffered",
    "PatternError",
    "PenaltyError",
    "ProblemError",
    "RecipeError",
    "ScheduleError",
    "ShapeError",
    "StructureError",
    "Unserved",
]


class GossamerError(Exception):
    """Base of every error that Gossamer raises on purpose."""


class PatternError(GossamerError, ValueError):
    """A bad pattern or text of one, a shape that does not fit it, or no way to pick its mask."""


class ArgumentError(GossamerError, ValueError):
    """An argument whose value is out of range or not allowed."""


class ScheduleError(ArgumentError):
    """A schedule that ends before it begins, or has a number that is not finite."""


class ShapeError(ArgumentError):
    """Sizes, strides or a number of dimensions that do not fit."""


class PenaltyError(ArgumentError):
    """A penalty's parameter out of range, an unknown penalty or grouping, or NaN in a group."""


class ProblemError(ArgumentError):
    """A transport problem that cannot be solved: a marginal, a cost or an option out of range."""


class NotOffered(ProblemError, NotImplementedError):  # noqa: N818
    """A problem that another library solves, and that its drop-in functions here do not."""


class DTypeError(GossamerError, TypeError):
    """A wrong dtype, or a wrong kind of object."""


class DeviceError(GossamerError, RuntimeError):
    """A tensor on a device that this build or this function cannot use."""


class StructureError(GossamerError, ValueError):
    """Invalid indices, pointers or descriptor, or a mask that does not obey its pattern."""


class CheckpointError(GossamerError, RuntimeError):
    """A truncated, damaged or mismatching checkpoint."""


class DataError(GossamerError, ValueError):
    """Training data that is missing, empty or unreadable."""


class RecipeError(GossamerError, ValueError):
    """A recipe that does not fit its model, its optimizer, its length or its checkpoint."""


class Unserved(GossamerError, NotImplementedError):  # noqa: N818
    """Valid arguments for which a device has no kernel."""


class ConvergenceWarning(UserWarning):
    """A solver stopped before its tolerance; the message says what to do."""


class GossamerDeprecationWarning(FutureWarning):
    """Something is still taken, and a coming version removes it; the message says what to use."""
