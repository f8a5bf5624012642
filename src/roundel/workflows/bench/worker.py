"""The process of one model, or of the memory's bandwidth: a request on a line of stdin, an answer on a line of stdout.

    {"do": "open", ...}     what `ModelUnderTest.about` says
    {"do": "prefill"}       seconds
    {"do": "decode"}        seconds
    {"do": "peak"}          bytes
    {"do": "bandwidth"}     bytes per second

It ends with its stdin, so that it never outlives the one who asks. What libraries print goes to stderr.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

import torch

from roundel.errors import RoundelError
from roundel.system.bandwidth import ReadBandwidth, buffer_bytes
from roundel.system.surroundings import undisturbed
from roundel.workflows.bench.under_test import ModelUnderTest, Opening


class _Answers:
    """What can be asked."""

    def __init__(self) -> None:
        self._model: ModelUnderTest | None = None
        self._bandwidth: ReadBandwidth | None = None

    def __call__(self, do: str, how: dict[str, Any]) -> Any:
        if do == "open":
            self._model = ModelUnderTest(Opening(**how))
            return self._model.about
        if do == "bandwidth":
            self._bandwidth = self._bandwidth or ReadBandwidth(buffer_bytes())
            return self._bandwidth.measure()
        assert self._model is not None, "nothing is open"
        known: dict[str, Callable[[], float]] = {
            "prefill": self._model.prefill,
            "decode": self._model.decode,
            "peak": self._model.peak,
        }
        return known[do]()


@undisturbed
def serve(requests: IO[str], replies: IO[str], threads: int) -> None:
    """Answer until there are no more requests.

    Args:
        requests: `{"do": ..., ...}`, a line each.
        replies: `{"result": ...}`, or `{"error": class, "message": ...}` for what Roundel raises on purpose.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    answer = _Answers()
    for line in requests:
        how = json.loads(line)
        try:
            reply = {"result": answer(how.pop("do"), how)}
        except RoundelError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(reply), file=replies, flush=True)


def _main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    serve(sys.stdin, replies, int(sys.argv[1]))


if __name__ == "__main__":
    _main()
