"""What the terminal shows: bars on stderr, results on stdout.

Names come from users, files and libraries: nothing of them is ever read as markup, an emoji's name or a terminal's
command. So the consoles themselves know no markup, and what is to be bold says so by its style.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from roundel.formatting import printable
from roundel.system.progress import Progress
from roundel.system.torchrun import number


class PlainConsole(Console):
    """Shows every text, cell and title as it is; control characters by their numbers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """All strings come by here, those in tables too, which count a tab as one character wide."""
        return super().render_str(
            printable(text).expandtabs(), **{**options, "markup": False, "emoji": False}
        )


# Tables in logs and pipes get the width that their columns need.
out = PlainConsole(width=None if sys.stdout.isatty() else 240)
err = PlainConsole(stderr=True)


def show_text(text: str) -> None:
    """A piece of a text on stdout, at once and as it is: not wrapped, not coloured, tabs left alone."""
    out.file.write(printable(text))
    out.file.flush()


# On something that is no terminal, one line per tenth of a stage instead of a moving bar.
_PLAIN_LINES = 10


# The work under way, if any: what Ctrl-C asks to stop.
_working: list[Progress] = []


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt: typer would turn that into its own word and exit code."""


def on_interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of SIGINT: long work ends after its present step; at the second time, or without such work, all."""
    if not _working or _working[-1].stop_asked:
        raise Interrupted
    _working[-1].stop_asked = True
    if first_rank():
        err.print("Stopping after this step; Ctrl-C again stops at once", style="yellow")


def first_rank() -> bool:
    """Whether this process speaks for all that share the work."""
    return number() == 0


def terminal_progress(*, stoppable: bool = False) -> Progress:
    """What shows work in the terminal; silent where another rank speaks.

    Args:
        stoppable: the work looks at `stop_asked`: Ctrl-C asks first.
    """
    progress = TerminalProgress() if first_rank() else Progress()
    if stoppable:
        _working.append(progress)
    return progress


class TerminalProgress(Progress):
    """Nested bars; plain lines where stderr is no terminal (logs, `make demo | tee`)."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: list[TaskID] = []
        self._plain: list[_PlainStage] = []

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Progress]:
        """One bar for the stage, below that of the stage around it."""
        if not err.is_terminal:
            with self._plain_stage(title, total):
                yield self
            return
        outermost = self._bars is None
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=err,
                transient=True,
            )
            self._bars.start()
        task = self._bars.add_task(printable(title), total=total, note="")
        self._tasks.append(task)
        try:
            yield self
        finally:
            self._tasks.pop()
            self._bars.remove_task(task)
            if outermost:
                self._bars.stop()
                self._bars = None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the innermost bar."""
        if self._bars is not None:
            self._bars.update(self._tasks[-1], advance=steps, note=printable(note))
        elif self._plain:
            self._plain[-1].advance(steps, note)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        err.print(text, style="yellow")

    @contextmanager
    def _plain_stage(self, title: str, total: int) -> Iterator[None]:
        # Inner stages (the steps of a block) would be too many lines: the outermost speaks.
        self._plain.append(_PlainStage(title, total, silent=bool(self._plain)))
        try:
            yield
        finally:
            self._plain.pop()


class _PlainStage:
    def __init__(self, title: str, total: int, silent: bool) -> None:
        self.title, self.total, self.silent = title, total, silent
        self.done = self.told = 0
        if not silent:
            err.print(f"{title} ...")

    def advance(self, steps: int, note: str) -> None:
        self.done += steps
        part = self.done * _PLAIN_LINES // max(self.total, 1)
        if part > self.told and not self.silent:
            self.told = part
            err.print(f"  {self.title}: {self.done} of {self.total} {note}".rstrip())
