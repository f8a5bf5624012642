"""What the terminal shows: bars on stderr, results on stdout.

Names come from users, files and libraries: nothing of them is ever read as markup, an emoji's name or a terminal's
command. So the consoles themselves know no markup, and what is to be bold says so by its style.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from roundel.formatting import about, printable
from roundel.system.pace import Pace
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
    """Nested bars with the time that is left; plain lines where stderr is no terminal (logs, `make demo | tee`)."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._stages: list[_Stage] = []

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Progress]:
        """One bar for the stage, below that of the stage around it."""
        if err.is_terminal:
            self._stages.append(_Bar(title, total, self._begun_bars()))
        else:
            # Inner stages (the steps of a block) would be too many lines: the outermost speaks.
            self._stages.append(_PlainStage(title, total, silent=bool(self._stages)))
        try:
            yield self
        finally:
            self._stages.pop().close()
            if not self._stages and self._bars is not None:
                self._bars.stop()
                self._bars = None

    def _begun_bars(self) -> Bars:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=err,
                transient=True,
            )
            self._bars.start()
        return self._bars

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the innermost bar, and with it the time that is left to those around it."""
        if self._stages:
            self._stages[-1].pace.advance(steps)
            self._show(steps, note)

    def found(self, steps: int) -> None:
        """Move the innermost bar over what was done before."""
        if self._stages:
            self._stages[-1].pace.found(steps)
            self._show(steps, "")

    def _show(self, steps: int, note: str) -> None:
        self._stages[-1].show(steps, 0.0, note)
        share = self._stages[-1].pace.share()
        for stage in self._stages[-2::-1]:
            stage.show(0, share, None)
            share = stage.pace.share(share)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        err.print(text, style="yellow")


class _Stage(ABC):
    """One stage of the work on a screen or in a log."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.pace = title, Pace(total)

    @abstractmethod
    def show(self, steps: int, of_present: float, note: str | None) -> None:
        """So many steps more are done, and a share of the step under way; None: the note is what it was."""

    @abstractmethod
    def close(self) -> None:
        """The stage is over."""

    def left(self, of_present: float) -> str:
        seconds = self.pace.left(of_present)
        return "" if not seconds else f"{about(seconds)} left"


class _Bar(_Stage):
    def __init__(self, title: str, total: int, bars: Bars) -> None:
        super().__init__(title, total)
        self._bars = bars
        self._task: TaskID = bars.add_task(printable(title), total=total, note="", left="")

    def show(self, steps: int, of_present: float, note: str | None) -> None:
        self._bars.update(self._task, advance=steps, left=self.left(of_present))
        if note is not None:
            self._bars.update(self._task, note=printable(note))

    def close(self) -> None:
        self._bars.remove_task(self._task)


class _PlainStage(_Stage):
    def __init__(self, title: str, total: int, silent: bool) -> None:
        super().__init__(title, total)
        self.silent, self.told = silent, 0
        if not silent:
            err.print(f"{title} ...")

    def show(self, steps: int, of_present: float, note: str | None) -> None:
        done, total = self.pace.done, self.pace.total
        part = done * _PLAIN_LINES // max(total, 1)
        if part > self.told and not self.silent:
            self.told = part
            more = ", ".join(filter(None, [self.left(of_present), note]))
            err.print(f"  {self.title}: {done} of {total}{more and f', {more}'}")

    def close(self) -> None:
        """What was printed stays."""
