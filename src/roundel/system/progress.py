"""How long work tells what it is doing, without knowing who listens.

The walk over the blocks, the trainer and the evaluation call `Progress`; the command line passes one that
draws bars. The base class is silent, which is what a Python user gets unless they ask for more.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from roundel.errors import Stopped


class Progress:
    """A silent listener; subclass it to show something.

    Attributes:
        stop_asked: the work is to end; set from anywhere, also from a signal handler.
    """

    stop_asked = False

    def check_stop(self) -> None:
        """Called by long work wherever it may end without damage.

        Raises:
            Stopped: the work was asked to end.
        """
        if self.stop_asked:
            raise Stopped

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator["Progress"]:
        """A piece of work of `total` steps. Stages nest."""
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more of the innermost stage are done; `note` is a few words beside its bar."""

    def found(self, steps: int) -> None:
        """`steps` of the innermost stage were done by an earlier process."""
        self.advance(steps)

    def say(self, text: str) -> None:
        """One line that the user should read: a decision taken, a default used."""
