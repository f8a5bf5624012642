"""Processes of their own that begin with everything imported: forked from a server that imported it once.

Imports take some seconds, more than most of what such a process is for. How `python -m roundel` and torchrun start from
nothing is tested where that is the question.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")
CONTEXT.set_forkserver_preload(["roundel.api", "roundel.cli.app", "torch.distributed"])
# From nothing: what is forked has not read from disk yet what it holds of libraries, and its memory grows with that.
ANEW = multiprocessing.get_context("spawn")


class Started:
    """A process that does something in Python, and what it has said so far."""

    def __init__(
        self,
        folder: Path,
        work: Callable[..., object],
        *given: object,
        env: Mapping[str, str] | None = None,
        context: Any = CONTEXT,
        reports: bool = False,
    ) -> None:
        """
        Args:
            folder: where what it says is kept; it is made.
            work: a function of a module, and what it is given.
            env: added to the environment.
            context: how it starts.
            reports: whether runs leave reports, as in conftest.py.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._said = {name: folder / name for name in ("stdout", "stderr")}
        for path in self._said.values():
            path.touch()
        arguments = (self._said, {**os.environ, **(env or {})}, reports, work, given)
        self.process = context.Process(target=_begin, args=arguments)
        self.process.start()

    def said(self, where: str) -> str:
        return self._said[where].read_text(encoding="utf-8")

    @property
    def stdout(self) -> str:
        return self.said("stdout")

    @property
    def stderr(self) -> str:
        return self.said("stderr")

    def await_words(self, words: str) -> None:
        while words not in self.stderr:
            assert self.process.is_alive(), self.stderr
            time.sleep(0.02)

    def wait(self) -> int:
        """What it left with, negative for a signal."""
        self.process.join(300)
        assert self.process.exitcode is not None, f"it does not end; so far: {self.stderr}"
        return self.process.exitcode


def command(*words: object) -> None:
    """The work of `roundel WORD...`."""
    from roundel.cli.app import main

    sys.argv = ["roundel", *map(str, words)]
    main()


def start_ranks(size: int, folder: Path, work: Callable[..., object], *given: object) -> list[Started]:
    """So many ranks, told as by torchrun where they meet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in range(size):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        env = place | {name: str(number) for name, number in numbers.items()}
        ranks.append(Started(folder / f"rank-{rank}", work, *given, env=env))
    return ranks


def run_on_ranks(size: int, folder: Path, work: Callable[..., object], *given: object) -> None:
    """Do it on so many ranks, and well."""
    ranks = start_ranks(size, folder, work, *given)
    left = [rank.wait() for rank in ranks]
    assert not any(left), [rank.stderr for rank in ranks]


def _begin(
    said: Mapping[str, Path], env: Mapping[str, str], reports: bool, work: Callable[..., Any], given: tuple
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(said[name], os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    if not reports:
        from roundel.workflows import run

        run.write_report = lambda *_: ""
    work(*given)
