"""Which grid activations are rounded to (rounding.py), as the few numbers that fix it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ActivationScheme:
    """Which grid.

    Attributes:
        bits: 2 to 8.
        sym: symmetric, without zero point.
        static: one fixed range per tensor; else one for each vector that comes by.
    """

    bits: int
    sym: bool
    static: bool

    @property
    def midpoint(self) -> int:
        """m; codes are signed and lie in [-m, m - 1]."""
        return 2 ** (self.bits - 1)

    @property
    def levels(self) -> int:
        """n, the number of steps between the first and the last code."""
        return 2**self.bits - 1

    @property
    def summary(self) -> str:
        """For tables."""
        return f"{self.bits} bit {'sym' if self.sym else 'asym'}, {'static' if self.static else 'per token'}"


@dataclass(frozen=True)
class Activations:
    """What is quantized beside the weights.

    Attributes:
        inputs: the grid of the inputs of all quantized Linears, or None.
        kv: the grid of keys and values, or None.
    """

    inputs: ActivationScheme | None = None
    kv: ActivationScheme | None = None

    def __bool__(self) -> bool:
        return self.inputs is not None or self.kv is not None


@dataclass(frozen=True)
class StaticGrid:
    """The fixed grid of one tensor; `zero` is a signed code."""

    scale: float
    zero: int
