"""The activations between blocks: what enters each block, for all calibration samples.

Two streams run through the model side by side: `original`, the unquantized model's, whose block outputs are
the targets, and `quantized`, the output of the blocks quantized so far, which is what a block will meet in
service. A method that trains on unquantized inputs runs without the second, one without targets (GPTQ, SpQR)
without the first.

A stream is a tensor, or a file that is read and written row by row. (Not a memory-mapped one: its pages would count as
the process's own memory, and whoever limits that would be surprised.)
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from roundel.errors import NonFiniteError, RecipeError
from roundel.files import reported, write_durably

Run = Callable[[torch.Tensor], torch.Tensor]
Rows = slice | list[int]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stream(Protocol):
    """Hidden states `[N, S, H]`; whatever is read is fp32."""

    shape: tuple[int, int, int]

    def __getitem__(self, rows: Rows) -> torch.Tensor:
        """Samples, `[n, S, H]`."""
        ...

    def __setitem__(self, rows: slice, values: torch.Tensor) -> None:
        """Write samples."""
        ...

    def keep(self, path: Path) -> None:
        """Put the whole stream into a file that outlives the process."""
        ...


class MemoryStream:
    """A stream in memory, on any device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = (tensor.shape[0], tensor.shape[1], tensor.shape[2])

    def __getitem__(self, rows: Rows) -> torch.Tensor:
        """Samples."""
        return self.tensor[rows]

    def __setitem__(self, rows: slice, values: torch.Tensor) -> None:
        """Write samples."""
        self.tensor[rows] = values.to(self.tensor.device)

    def keep(self, path: Path) -> None:
        """Write a file in one go."""
        write_durably(path, lambda part: self.tensor.cpu().numpy().tofile(part))


class FileStream:
    """A stream in a file, in 32 or 16 bit.

    Args:
        path: read if it exists, else made.
        shape: `[N, S, H]`.
        dtype: of the numbers in the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._row = shape[1] * shape[2] * dtype.itemsize
        with reported(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._file, shape[0] * self._row)

    def __getitem__(self, rows: Rows) -> torch.Tensor:
        """Read samples."""
        numbers = range(self.shape[0])[rows] if isinstance(rows, slice) else rows
        found = torch.empty(len(numbers), *self.shape[1:], dtype=self.dtype)
        with reported(self.path):
            for place, number in enumerate(numbers):
                view = found[place].view(torch.uint8).numpy().data.cast("B")
                os.preadv(self._file, [view], number * self._row)
        return found.float()

    def __setitem__(self, rows: slice, values: torch.Tensor) -> None:
        """Write samples, rounded to the file's type."""
        bytes_ = values.to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        first = rows.start or 0
        with reported(self.path):
            written = 0
            while written < len(bytes_):  # one call writes 2 GiB at most
                written += os.pwrite(self._file, bytes_[written:], first * self._row + written)

    def keep(self, path: Path) -> None:
        """It is there, under this very path; wait for the disk."""
        assert path == self.path
        with reported(path):
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
    """

    device: torch.device
    folder: Path | None = None
    on_disk: bool = False
    dtype: torch.dtype = torch.float32

    def make(self, name: str, shape: tuple[int, int, int]) -> Stream:
        """An empty stream; `name` is that of its file."""
        if self.on_disk:
            path = self._path(name)
            path.unlink(missing_ok=True)
            return FileStream(path, shape, self.dtype)
        return MemoryStream(torch.empty(shape, device=self.device))

    def keep(self, name: str, stream: Stream) -> None:
        """See that a stream outlives the process."""
        stream.keep(self._path(name))

    def find(self, name: str, shape: tuple[int, int, int]) -> Stream:
        """A stream that was kept."""
        path = self._path(name)
        if self.on_disk:
            return FileStream(path, shape, self.dtype)
        with reported(path):
            tensor = torch.from_file(str(path), size=shape[0] * shape[1] * shape[2]).view(shape).clone()
        return MemoryStream(tensor.to(self.device))

    def discard(self, name: str) -> None:
        """A kept stream is wanted no more."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.bin"


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
            raise RecipeError(f"streams of {self.dtype}: one of {', '.join(DTYPES)} is wanted")
        if self.dtype != "float32" and not self.on_disk:
            raise RecipeError(f"streams of {self.dtype} are files: streams in memory are float32")

    def home(self, device: torch.device, folder: Path) -> StreamHome:
        """For a run with this work folder."""
        return StreamHome(device, folder, bool(self.on_disk), DTYPES[self.dtype])


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


def relative_error(streams: Streams) -> float:
    """Mean over the tokens of |quantized - original|^2 / |original|^2, sample by sample to save memory."""
    assert streams.original is not None
    assert streams.quantized is not None
    total = 0.0
    for rows in batches(streams.original, 1):
        wanted, found = streams.original[rows], streams.quantized[rows]
        power = wanted.square().mean(-1).clamp_min(1e-30)
        total += float(((found - wanted).square().mean(-1) / power).mean())
    return total / streams.original.shape[0]


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
        if not torch.isfinite(found).all():
            raise NonFiniteError(
                f"the output of {name} holds NaN or infinity on the calibration data: finite activations are wanted; "
                "the model is damaged, or the text is none that it can read"
            )
        if outputs is not None:
            outputs[rows] = found
