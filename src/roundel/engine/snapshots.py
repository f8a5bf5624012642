"""Snapshots inside a block: tuning that takes long is not begun anew after an interruption."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roundel.engine.trainer import Snapshot
from roundel.formats.integers import read_integers, write_integers
from roundel.system.files import write_durably
from roundel.system.progress import Progress
from roundel.system.ranks import ALONE, Ranks


class TuningSnapshots:
    """Writes a snapshot at intervals, and when the work is asked to stop.

    Args:
        path: of the file.
        model: names and shapes for the integers in it.
        progress: knows whether the work was asked to stop.
        every: seconds between snapshots; writing never takes more than a tenth of the time.
        ranks: that tune together, all in the same state: the first of them writes.
    """

    def __init__(
        self, path: Path, model: Any, progress: Progress, every: float, ranks: Ranks = ALONE
    ) -> None:
        self.path, self.model, self.progress, self.every = path, model, progress, every
        self.ranks = ranks
        self._last = time.monotonic()
        self._cost = 0.0

    def latest(self) -> Snapshot | None:
        """What an earlier process left."""
        if not self.path.is_file():
            return None
        stored = read_integers(self.path)
        return Snapshot(stored.note["step"], stored.others, stored.note["numbers"], stored.weights)

    def after_step(self, snapshot: Callable[[], Snapshot]) -> None:
        """Write a snapshot if it is time.

        Raises:
            Stopped: after a last snapshot, if the work was asked to end.
        """
        began = time.monotonic()
        stop = self.ranks.any(self.progress.stop_asked)
        due = began - self._last >= max(self.every, 10 * self._cost)
        if self.ranks.first and (stop or due):
            self._write(snapshot())
            self._last = time.monotonic()
            self._cost = self._last - began
        self.ranks.check_stop(stop)

    def _write(self, snapshot: Snapshot) -> None:
        note = {"step": snapshot.step, "numbers": snapshot.numbers}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()}
        write_durably(self.path, lambda part: write_integers(part, self.model, snapshot.best, tensors, note))
