"""A process that answers (worker.py), from the side of the one who asks."""

import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from roundel import errors
from roundel.errors import ModelError, RoundelError

_PATIENCE_SECONDS = 10


class Worker:
    """Starts the process; it ends with the `with` block.

    Args:
        name: of what it does, for messages.
        threads: of torch in it.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        # Threads are those of torch and of every other library that asks OpenMP. It is in a session of its own, where
        # Ctrl-C does not reach it: it ends because its stdin does.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "roundel.workflows.bench.worker", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            encoding="utf-8",
            start_new_session=True,
        )

    def ask(self, do: str, **how: Any) -> Any:
        """The answer to a request.

        Raises:
            RoundelError: what it raised, of the same class.
            ModelError: it is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **how}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ModelError(
                f"the process of {self._name} is gone ({self._ending()}): memory for all models at a time is "
                "expected; name fewer of them"
            )
        reply = json.loads(line)
        if "error" in reply:
            kind = getattr(errors, reply["error"], RoundelError)
            raise kind(reply["message"])
        return reply["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()  # it may be in the middle of something long
        with self._process:  # closes its stdin, and waits
            pass

    def _ending(self) -> str:
        try:
            code = self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
