"""A figure with its 95 % interval, which a single window does not give: it tells nothing of another one.

Reports hold figures as plain data; they are read back into this class to be shown, so that the type checker asks
everywhere what to do without bounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; without bounds where a single window tells nothing of another."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def read(cls, plain: Mapping[str, Any] | None) -> "Interval | None":
        """From plain data; None where nothing was measured."""
        return cls(plain["value"], plain["low"], plain["high"]) if plain else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Low and high, if there are any."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def reach(self) -> tuple[float, float]:
        """Low and high; without bounds the value alone."""
        return self.bounds or (self.value, self.value)
