"""The activations between blocks: what enters each block, for all calibration samples.

Two streams run through the model side by side: `original`, the unquantized model's, whose block outputs are
the targets, and `quantized`, the output of the blocks quantized so far, which is what a block will meet in
service. A method that trains on unquantized inputs runs without the second, one without targets (GPTQ, SpQR)
without the first.

A stream is a tensor, or a file that is read and written row by row. (Not a memory-mapped one: its pages would count as
the process's own memory, against any limit on it.) Of several ranks each holds its own samples; a
file has those of all ranks, in their order, so that it can be read by another number of ranks.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from roundel.errors import NonFiniteError, OutputError, RecipeError
from roundel.system.files import flush, reported, write_durably
from roundel.system.finite import all_finite
from roundel.system.ranks import ALONE, Ranks

Run = Callable[[torch.Tensor], torch.Tensor]
Rows = slice | list[int]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stream(Protocol):
    """Hidden states of this rank's samples; whatever is read is fp32.

    Attributes:
        shape: `[n, S, H]` of this rank's share.
        whole: `[N, S, H]` of all ranks together.
    """

    shape: tuple[int, int, int]
    whole: tuple[int, int, int]

    @property
    def path(self) -> Path | None:
        """Of a file that holds it, if there is one."""
        ...

    def __getitem__(self, rows: Rows) -> torch.Tensor:
        """Samples of the share, `[n, S, H]`."""
        ...

    def __setitem__(self, rows: slice, values: torch.Tensor) -> None:
        """Write samples of the share."""
        ...


class MemoryStream:
    """A stream in memory, on any device."""

    def __init__(self, tensor: torch.Tensor, samples: int | None = None) -> None:
        self.tensor = tensor
        self.path: Path | None = None
        self.shape = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
        self.whole = (self.shape[0] if samples is None else samples, *self.shape[1:])

    def __getitem__(self, rows: Rows) -> torch.Tensor:
        """Samples."""
        return self.tensor[rows]

    def __setitem__(self, rows: slice, values: torch.Tensor) -> None:
        """Write samples."""
        self.tensor[rows] = values.to(self.tensor.device)


class FileStream:
    """A stream in a file, in 32 or 16 bit.

    Args:
        path: read if it exists, else made.
        whole: `[N, S, H]`, of the file.
        dtype: of the numbers in the file.
        ranks: whose shares are in the file.
    """

    def __init__(
        self, path: Path, whole: tuple[int, int, int], dtype: torch.dtype, ranks: Ranks = ALONE
    ) -> None:
        self.path, self.whole, self.dtype = path, whole, dtype
        self._own = ranks.own(whole[0])
        self.shape = (len(self._own), *whole[1:])
        self._row = whole[1] * whole[2] * dtype.itemsize
        with reported(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, whole[0] * self._row)

    def __getitem__(self, rows: Rows) -> torch.Tensor:
        """Read samples."""
        numbers = self._own[rows] if isinstance(rows, slice) else [self._own[row] for row in rows]
        found = torch.empty(len(numbers), *self.shape[1:], dtype=self.dtype)
        with reported(self.path):
            for place, number in enumerate(numbers):
                view = found[place].view(torch.uint8).numpy().data.cast("B")
                os.preadv(self._file, [view], number * self._row)
        return found.float()

    def __setitem__(self, rows: slice, values: torch.Tensor) -> None:
        """Write samples, rounded to the file's type."""
        stored = values.to("cpu", self.dtype).contiguous().view(torch.uint8).numpy()
        with reported(self.path):
            for number, row in zip(self._own[rows], stored, strict=True):
                self._write(row.data.cast("B"), number * self._row)

    def _write(self, content: memoryview, place: int) -> None:
        while content:  # one call writes 2 GiB at most
            written = os.pwrite(self._file, content, place)
            content, place = content[written:], place + written

    def flush(self) -> None:
        """Wait until all is on the disk."""
        with reported(self.path):
            os.fsync(self._file)

    def __del__(self) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class StreamHome:
    """Where streams are made.

    Attributes:
        device: of streams in memory.
        folder: of files; None: nothing is kept on disk.
        on_disk: streams are files.
        dtype: of the numbers in those files.
        ranks: whose shares the streams are.
    """

    device: torch.device
    folder: Path | None = None
    on_disk: bool = False
    dtype: torch.dtype = torch.float32
    ranks: Ranks = ALONE

    def make(self, name: str, whole: tuple[int, int, int]) -> Stream:
        """An empty stream, `whole` of all ranks together, which make it together; `name` is that of its file."""
        if self.on_disk:
            path = self._path(name)
            with self.ranks.raise_together():
                if self.ranks.first:
                    path.unlink(missing_ok=True)
            return FileStream(path, whole, self.dtype, self.ranks)
        share = len(self.ranks.own(whole[0]))
        return MemoryStream(
            torch.empty((share, *whole[1:]), dtype=torch.float32, device=self.device), whole[0]
        )

    def persist(self, name: str, stream: Stream) -> None:
        """See that a stream outlives the process; all ranks together."""
        path = self._path(name)
        if isinstance(stream, FileStream):
            with self.ranks.raise_together():
                stream.flush()
        if stream.path is not None and stream.path.is_file():
            with self.ranks.raise_together():
                if self.ranks.first and stream.path != path:
                    write_durably(path, partial(_link, stream.path))
            return
        part = path.with_name(f".{path.name}.part")
        with self.ranks.raise_together():
            file = FileStream(part, stream.whole, torch.float32, self.ranks)
            for rows in batches(stream, 1):
                file[rows] = stream[rows]
            file.flush()
        with self.ranks.raise_together():
            if self.ranks.first:
                with reported(path):
                    part.replace(path)
                    flush(path.parent)
        if isinstance(stream, MemoryStream):
            stream.path = path

    def find(self, name: str, whole: tuple[int, int, int]) -> Stream:
        """A stream that was kept.

        Raises:
            OutputError: its file is not there, or not whole.
        """
        path, dtype = self._path(name), self.dtype if self.on_disk else torch.float32
        if not path.is_file() or path.stat().st_size != prod(whole) * dtype.itemsize:
            raise OutputError(f"{path} is not what was written there: pass --restart to begin again")
        file = FileStream(path, whole, dtype, self.ranks)
        return file if self.on_disk else MemoryStream(file[:].to(self.device), whole[0])

    def discard(self, name: str) -> None:
        """A kept stream is expected no more."""
        if self.ranks.first:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.bin"


def _link(source: Path, path: Path) -> None:
    """The same file under another name; a copy where the disk has no such thing."""
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Where a run keeps its streams.

    Attributes:
        on_disk: in files of the work folder beside the output; False: in memory; None: in memory if the plan says that
            they fit.
        dtype: float32, bfloat16 or float16: of the numbers in those files. With float32 the result has the same
            bytes as with streams in memory.
    """

    on_disk: bool | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise RecipeError(f"streams of {self.dtype}: one of {', '.join(DTYPES)} is expected")
        if self.dtype != "float32" and not self.on_disk:
            raise RecipeError(f"streams of {self.dtype} are files: streams in memory are float32")

    def home(self, device: torch.device, folder: Path, ranks: Ranks = ALONE) -> StreamHome:
        """For a run with this work folder."""
        return StreamHome(device, folder, bool(self.on_disk), DTYPES[self.dtype], ranks)


@dataclass
class Streams:
    """Inputs of the present block; None where no method needs the stream."""

    original: Stream | None
    quantized: Stream | None

    @property
    def inputs(self) -> Stream:
        """What the block is quantized on."""
        inputs = self.original if self.quantized is None else self.quantized
        assert inputs is not None
        return inputs

    @property
    def present(self) -> dict[str, Stream]:
        """Those that there are, by name."""
        named = {"original": self.original, "quantized": self.quantized}
        return {name: stream for name, stream in named.items() if stream is not None}


def batches(stream: Stream, size: int) -> Iterator[slice]:
    """The rows of a stream in batches."""
    for first in range(0, stream.shape[0], size):
        yield slice(first, min(first + size, stream.shape[0]))


def relative_error(streams: Streams, ranks: Ranks) -> float:
    """Mean over the tokens of |quantized - original|^2 / |original|^2, sample by sample to save memory."""
    assert streams.original is not None
    assert streams.quantized is not None
    errors = []
    for rows in batches(streams.original, 1):
        wanted, found = streams.original[rows], streams.quantized[rows]
        power = wanted.square().mean(-1).clamp_min(1e-30)
        errors.append(float(((found - wanted).square().mean(-1) / power).mean()))
    samples = streams.original.whole[0]
    return sum(ranks.in_order(errors, ranks.own(samples), samples)) / samples


@torch.no_grad()
def run_all(
    run: Run, inputs: Stream, outputs: Stream | None, batch_size: int, device: torch.device, name: str
) -> None:
    """A block on a whole stream, batch by batch; without `outputs` they are dropped.

    Raises:
        NonFiniteError: an output is NaN or infinite; `name` is the block in the message.
    """
    for rows in batches(inputs, batch_size):
        found = run(inputs[rows].to(device))
        if not all_finite(found):
            raise NonFiniteError(
                f"the output of {name} holds NaN or infinity on the calibration data: finite activations are expected; "
                "the model is damaged, or the text is none that it can read"
            )
        if outputs is not None:
            outputs[rows] = found
