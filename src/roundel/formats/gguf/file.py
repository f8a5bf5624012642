"""GGUF files: what is in one, and writing one a tensor at a time.

The `gguf` package reads and writes headers. Tensors go to their places in the file in whatever order they come, so that
no more than one need be in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType

from roundel.errors import FormatError, ModelError
from roundel.formatting import kind_and_line

_ARCHITECTURE, _ALIGNMENT = "general.architecture", "general.alignment"


@dataclass(frozen=True)
class Field:
    """An entry of the metadata.

    Attributes:
        key: its name.
        value: a number, a text, or a list of either.
        type: as the file stores it.
        of: the type of a list's items; None: it is no list.
    """

    key: str
    value: Any
    type: GGUFValueType
    of: GGUFValueType | None = None


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file.

    Attributes:
        name: there.
        shape: `[out, in]`, of stacked experts `[E, out, in]`, or of any other.
        kind: how its numbers are stored.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def bytes(self) -> int:
        """Of all of it."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


@dataclass(frozen=True)
class Table:
    """A tensor of a file that is no weight of the model.

    Attributes:
        tensor: its name, shape and type.
        data: its bytes.
    """

    tensor: FileTensor
    data: torch.Tensor


class GgufFile:
    """A file that is there.

    Args:
        path: the file.

    Raises:
        ModelError: it is damaged, or one of several that belong together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
            self.arch = str(self._reader.fields[_ARCHITECTURE].contents())
        except (ValueError, KeyError, IndexError, OSError, TypeError) as error:
            raise ModelError(
                f"{path} is no whole GGUF file ({kind_and_line(error)}): a whole one is expected; copy or "
                "download it again"
            ) from error
        parts = self._reader.fields.get("split.count")
        if parts is not None and parts.contents() > 1:
            raise ModelError(
                f"{path} is one of {parts.contents()} files of a model: one file is expected; join them with "
                "llama-gguf-split --merge"
            )
        self.tensors = {
            t.name: FileTensor(t.name, tuple(int(n) for n in reversed(t.shape)), t.tensor_type)
            for t in self._reader.tensors
        }
        self._data = {t.name: t.data for t in self._reader.tensors}

    @property
    def matrix_kinds(self) -> set[Kind]:
        """How its matrices are stored."""
        return {tensor.kind for tensor in self.tensors.values() if len(tensor.shape) > 1}

    @cached_property
    def fields(self) -> list[Field]:
        """The metadata, in order."""
        found = []
        for name, field in self._reader.fields.items():
            if not name.startswith("GGUF."):
                of = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
                found.append(Field(name, field.contents(), field.types[0], of))
        return found

    def raw(self, name: str, expert: int | None = None) -> torch.Tensor:
        """The bytes of a tensor, or of an expert's matrix in it, `[n]` uint8."""
        return torch.from_numpy(np.array(self._part(name, expert)).reshape(-1).view(np.uint8))

    def table(self, name: str) -> Table:
        """A tensor as it is."""
        return Table(self.tensors[name], self.raw(name))

    def tensor(self, name: str, expert: int | None = None) -> torch.Tensor:
        """A tensor, or an expert's matrix in it, in float32, by the `gguf` package's own rules.

        Raises:
            KeyError: there is none of that name.
        """
        numbers = gguf.dequantize(self._part(name, expert), self.tensors[name].kind)
        shape = self.tensors[name].shape
        return torch.from_numpy(np.array(numbers, dtype=np.float32)).view(
            shape if expert is None else shape[1:]
        )

    def _part(self, name: str, expert: int | None) -> Any:
        # A row of the array is a row of the matrix, in bytes or in numbers.
        return self._data[name] if expert is None else self._data[name][expert]


def open_file(path: Path) -> GgufFile:
    """A file that is there; one that was opened a moment ago is not read again.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): a GGUF file is expected") from error
    return _opened(path, about.st_mtime_ns, about.st_size)


def forget_files() -> None:
    """Let go of what `open_file` keeps: a tokenizer's words as objects are larger than some models."""
    _opened.cache_clear()


@lru_cache(maxsize=1)
def _opened(path: Path, changed: int, size: int) -> GgufFile:
    return GgufFile(path)


@dataclass(frozen=True)
class Chunk:
    """Bytes on their way into a file.

    Attributes:
        name: of the tensor there.
        data: uint8, all of it or of one expert's matrix.
        expert: which; None: there is but one.
    """

    name: str
    data: torch.Tensor
    expert: int | None = None


def write_file(path: Path, fields: list[Field], tensors: list[FileTensor], chunks: Iterable[Chunk]) -> None:
    """Write a file.

    Args:
        path: that does not exist.
        fields: the metadata, `general.architecture` among them.
        tensors: all of them, in the order of the file.
        chunks: their bytes, in any order.

    Raises:
        FormatError: some bytes are missing, or have no place.
    """
    arch = next(field.value for field in fields if field.key == _ARCHITECTURE)
    writer = gguf.GGUFWriter(None, arch)
    for field in fields:
        if field.key == _ALIGNMENT:
            writer.add_custom_alignment(field.value)
        elif field.key != _ARCHITECTURE:
            writer.add_key_value(field.key, field.value, field.type, field.of)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=tensor.kind
        )
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    begin = gguf.GGUFWriter.ggml_pad(path.stat().st_size, writer.data_alignment)
    places, end = {}, begin
    for tensor in tensors:
        places[tensor.name] = end
        end += gguf.GGUFWriter.ggml_pad(tensor.bytes, writer.data_alignment)
    missing = {tensor.name: tensor.bytes for tensor in tensors}
    with path.open("r+b") as file:
        file.truncate(end)
        for chunk in chunks:
            if chunk.name not in missing:
                raise FormatError(f"{chunk.name} has no place in the written file; please report this")
            file.seek(places[chunk.name] + (chunk.expert or 0) * chunk.data.numel())
            file.write(chunk.data.contiguous().numpy().data)
            missing[chunk.name] -= chunk.data.numel()
    wrong = [name for name, count in missing.items() if count]
    if wrong:
        raise FormatError(f"{wrong[0]} was not written whole; please report this")
