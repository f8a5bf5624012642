"""How long work will still take, from what it has taken so far."""

import time
from collections.abc import Callable


class Pace:
    """The pace of a piece of work of `total` steps that begins now.

    Args:
        total: steps.
        clock: seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._clock = total, clock
        self.done = 0
        self._before = 0
        self._began = clock()

    def advance(self, steps: int) -> None:
        """So many more are done."""
        self.done += steps

    def found(self, steps: int) -> None:
        """So many were done before, by another process: they took no time of this one's."""
        self.done += steps
        self._before += steps
        self._began = self._clock()

    def share(self, of_present: float = 0.0) -> float:
        """How much of the work is done, 0 to 1.

        Args:
            of_present: of the step under way.
        """
        return min(1.0, (self.done + of_present) / max(self.total, 1))

    def left(self, of_present: float = 0.0) -> float | None:
        """Seconds that are left; None as long as nothing is known.

        Args:
            of_present: share of the step under way that is done.
        """
        worked = self.done + of_present - self._before
        if worked <= 0:
            return None
        waiting = max(0.0, self.total - self.done - of_present)
        return (self._clock() - self._began) * waiting / worked
