"""The penalties, one file per family; each file exports its classes."""

from gossamer.prox.penalties.concave import *  # noqa: F403
from gossamer.prox.penalties.constraints import *  # noqa: F403
from gossamer.prox.penalties.ordered import *  # noqa: F403
from gossamer.prox.penalties.separable import *  # noqa: F403
from gossamer.prox.penalties.structured import *  # noqa: F403
from gossamer.prox.penalties.wgsef import *  # noqa: F403
