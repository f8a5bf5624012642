"""How long work tells what it is doing, without knowing who listens.

The walk over the blocks, the trainer and the evaluation call `Progress`; the command line passes one that
draws bars. The base class is silent, which is what a Python user gets unless they ask for more.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """A silent listener; subclass it to show something."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator["Progress"]:
        """A piece of work of `total` steps. Stages nest."""
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more of the innermost stage are done; `note` is a few words beside its bar."""

    def say(self, text: str) -> None:
        """One line that the user should read: a decision taken, a default used."""
