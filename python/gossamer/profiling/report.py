"""The times of a model's layers, what follows for its step, and the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gossamer.arguments import check
from gossamer.errors import ArgumentError
from gossamer.patterns import Pattern, parse_pattern
from gossamer.tables import text_table

DENSE = "dense"
_SHOWN = 2  # names in a row of the table
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class LayerTimes:
    """Times of all layers of one shape that get inputs of one size.

    Args:
        names: names of the modules; "" is the model itself.
        calls: how often they are called in one step, all together.
        out_features: rows of the weight; of a module with several, of the first.
        in_features: columns of it; of a convolution, taps times channels.
        rows: rows of the input, all leading dimensions together; of a convolution, pixels of the
            output.
        dtype: that the layer computes in.
        pattern: of the layers as they stand, "dense" or a pattern's text.
        seconds: median time of one call by pattern, with "dense".
        refused: why a pattern was not timed, by pattern.
        kind: the class of the layer when dense, such as "Linear", "Conv2d" or "LSTM".
    """

    names: tuple[str, ...]
    calls: int
    out_features: int
    in_features: int
    rows: int
    dtype: str
    pattern: str
    seconds: Mapping[str, float]
    refused: Mapping[str, str] = field(default_factory=dict)
    kind: str = "Linear"

    @property
    def now(self) -> float:
        """Seconds of one call as the layers stand."""
        return self.seconds[self.pattern]

    @property
    def best(self) -> str:
        """The fastest of "dense" and the patterns."""
        return min(self.seconds, key=lambda name: self.seconds[name])

    def gain(self, pattern: str | Pattern) -> float | None:
        """Times faster than dense under a pattern; None if it was refused.

        Example:
            >>> LayerTimes(("fc",), 1, 8, 8, 4, "float32", "dense", {"dense": 3.0, "2:4": 1.5}
            ...            ).gain("2:4")
            2.0
        """
        seconds = self.seconds.get(str(pattern))
        return None if seconds is None else self.seconds[DENSE] / seconds


@dataclass(frozen=True)
class Profile:
    """The layers of a model that can be sparse and its whole step; `print` shows a table.

    Args:
        layers: one entry per shape of layer and input, in the order of the calls.
        patterns: the texts of the patterns asked for.
        step: seconds of the model's step as it stands.
        backward: whether the backward pass was timed.
        threads: that were used.
        untimed: one line per kind of weights that were not timed.
    """

    layers: tuple[LayerTimes, ...]
    patterns: tuple[str, ...]
    step: float
    backward: bool
    threads: int
    untimed: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the step that the layers take, at most 1."""
        return min(1.0, sum(layer.calls * layer.now for layer in self.layers) / self.step)

    def keep_dense(self, pattern: str | Pattern) -> list[str]:
        """Return the names of the layers that a pattern does not make faster.

        They are what `sparsify(model, pattern, exclude=...)` takes.

        Args:
            pattern: one of those asked for.

        Raises:
            ArgumentError: it is not.
        """
        text = self._known(pattern)
        return [
            name
            for layer in self.layers
            if (gain := layer.gain(text)) is None or gain <= 1.0
            for name in layer.names
        ]

    def estimate(self, pattern: str | Pattern) -> float:
        """Estimate the seconds of a step with the layers that gain under a pattern, others dense.

        It is the measured step less what the layers save; never less than what they need.

        Args:
            pattern: one of those asked for.

        Raises:
            ArgumentError: it is not.
        """
        text = self._known(pattern)
        now = sum(layer.calls * layer.now for layer in self.layers)
        then = sum(
            layer.calls * min(layer.seconds[DENSE], layer.seconds.get(text, layer.seconds[DENSE]))
            for layer in self.layers
        )
        return max(then, self.step - now + then)

    def plot(self, path: str | Path) -> None:
        """Draw the time that each group of layers takes in a step, dense and under the patterns.

        Args:
            path: of the PNG file to write.

        Raises:
            OSError: the file cannot be written.
            ImportError: matplotlib is not installed.
        """
        check(Profile.plot, locals())
        try:
            from gossamer.profiling.picture import plot
        except ModuleNotFoundError as error:
            raise ImportError(
                f"the picture of a profile needs {error.name}: pip install 'gossamer[cli]'"
            ) from error

        plot(self, path)

    def _known(self, pattern: str | Pattern) -> str:
        text = str(parse_pattern(pattern))
        if text not in self.patterns:
            raise ArgumentError(
                f"the profile has no times of {text}; it has {', '.join(self.patterns)}: "
                "give it in profile(..., patterns=...)"
            )
        return text

    def __str__(self) -> str:
        rows = [
            (
                _listed(layer.names),
                layer.kind,
                f"{layer.out_features}x{layer.in_features}",
                layer.dtype,
                str(layer.rows),
                str(layer.calls),
                layer.pattern,
                _time(layer.seconds[DENSE]),
                *(_cell(layer, pattern) for pattern in self.patterns),
                layer.best,
            )
            for layer in self.layers
        ]
        dense = sum(layer.calls * layer.seconds[DENSE] for layer in self.layers)
        total = ("all calls", *[""] * 6, _time(dense), *map(self._sum, self.patterns), "")
        what = "forward and backward" if self.backward else "forward"
        return text_table(
            f"time per call, {what}, {self.threads} thread{'s' * (self.threads > 1)}",
            (
                "layers",
                "kind",
                "weight",
                "dtype",
                "rows",
                "calls",
                "now",
                DENSE,
                *self.patterns,
                "best",
            ),
            rows,
            total,
            left=1,
            notes=self._notes(),
        )

    def _sum(self, pattern: str) -> str:
        return _time(
            sum(
                layer.calls * layer.seconds.get(pattern, layer.seconds[DENSE])
                for layer in self.layers
            )
        )

    def _notes(self) -> list[str]:
        share = f"{100 * self.share:.0f} %"
        notes = [f"the model's step takes {_time(self.step)}; these layers are {share} of it"]
        for pattern in self.patterns:
            then, slower = self.estimate(pattern), self.keep_dense(pattern)
            note = f"{pattern}: about {_time(then)} a step, {self.step / then:.2f}x"
            if slower:
                note += f", with {_listed(slower)} left dense"
            notes.append(note)
        reasons = dict.fromkeys(r for layer in self.layers for r in layer.refused.values())
        notes += [f"-: {reason}" for reason in reasons]
        return notes + [f"not timed: {line}" for line in self.untimed]


def _cell(layer: LayerTimes, pattern: str) -> str:
    gain = layer.gain(pattern)
    return "-" if gain is None else f"{_time(layer.seconds[pattern])} {gain:5.2f}x"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _listed(names: Iterable[str]) -> str:
    # Blocks of a model have the same names but for a number.
    forms = list(dict.fromkeys(_NUMBER.sub("*", name) for name in names))
    shown = ", ".join(form or "(the model)" for form in forms[:_SHOWN])
    more = len(forms) - _SHOWN
    return shown + (f" and {more} more" if more > 0 else "")
