"""What the bench of convolutions measures, and what must be reached."""

from dataclasses import dataclass
from typing import NamedTuple

from bench.harness.bars import Bar
from bench.harness.plan import Plan, quick

BOTH, STEP, MEMORY = "forward + backward", "train step", "memory of a step"
DENSE, SPARSEPROP = "torch dense", "SparseProp"


class Shape(NamedTuple):
    """A square convolution of equal channels in and out.

    Example:
        >>> str(Shape(8, 64, 56, 3, 1))
        '8x64x56, 3x3'
    """

    images: int
    channels: int
    side: int
    kernel: int = 3
    stride: int = 1

    def __str__(self) -> str:
        text = f"{self.images}x{self.channels}x{self.side}, {self.kernel}x{self.kernel}"
        return text if self.stride == 1 else f"{text}, stride {self.stride}"

    @property
    def flops(self) -> int:
        """Floating-point operations of the dense product."""
        pixels = self.images * (self.side // self.stride) ** 2
        return 2 * pixels * (self.channels * self.kernel) ** 2


SHAPES = (
    Shape(8, 64, 56),
    Shape(8, 128, 28),
    Shape(8, 256, 14),
    Shape(8, 64, 14),
    Shape(2, 256, 56),
    Shape(8, 128, 28, stride=2),
    Shape(8, 256, 14, kernel=1),
)
PATTERNS = ("2:4:v4", "90%", "90%:v4", "95%", "95%:v4", "99%")
# Rows that share their columns are the library's own; SparseProp has single entries.
SPARSEPROP_PATTERNS = ("90%", "95%", "99%")
HALF_PATTERNS = ("2:4:v4", "90%:v4", "95%", "95%:v4")
STEP_PATTERNS = ("2:4:v4", "90%:v4", "95%", "95%:v4")
_BARRED = tuple(str(shape) for shape in SHAPES[:5])


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Args:
        shapes: of the layers.
        patterns: of the layers.
        half: of the layers in bfloat16.
        width: of the first stage of the ResNet.
        images: of its batch.
        rounds: steps that are timed.
    """

    shapes: tuple[Shape, ...] = SHAPES
    patterns: tuple[str, ...] = PATTERNS
    half: tuple[str, ...] = HALF_PATTERNS
    width: int = 64
    images: int = 32
    rounds: int = 5

    @property
    def resnet(self) -> str:
        """Text of the sizes."""
        return f"ResNet-18 width {self.width}, {self.images}x3x32"


FULL = Plan(Scope())
QUICK = quick(
    Scope(
        shapes=(Shape(2, 16, 8),), patterns=("2:4:v4", "90%"), half=("2:4:v4",), width=8, images=4
    )
)

BARS: tuple[Bar, ...] = (
    Bar(BOTH, (DENSE,), 2.5, patterns=("90%:v4",), shapes=_BARRED, dtype="float32"),
    Bar(BOTH, (DENSE,), 1.5, patterns=("2:4:v4",), shapes=_BARRED, dtype="float32"),
    Bar(BOTH, (SPARSEPROP,), 1.0, patterns=SPARSEPROP_PATTERNS),
    Bar(STEP, (DENSE,), 1.5, patterns=("95%:v4",)),
    Bar(STEP, (DENSE,), 1.25, patterns=("2:4:v4",)),
    Bar(MEMORY, (DENSE,), 1.2, "share"),
)
