"""Weight files of bounded size: one of the plain name, or numbered ones with an index, as transformers reads them."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from roundel.errors import ModelError
from roundel.model.names import own_parameters

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]

# Whatever is written is in memory once; a larger piece makes a file of its own.
SHARD_BYTES = 1 << 30
_STEM = "model"
_SINGLE = f"{_STEM}.safetensors"
# Of the tensors that Roundel writes.
_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "I8": torch.int8,
}


def size_of(tensors: Tensors) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def in_shards(parts: Iterable[T], size: Callable[[T], int], most: int | None = None) -> Iterator[list[T]]:
    """Neighbouring parts in lists of at most `most` bytes, by default `SHARD_BYTES`."""
    most = SHARD_BYTES if most is None else most
    held: list[T] = []
    total = 0
    for part in parts:
        more = size(part)
        if held and total + more > most:
            yield held
            held, total = [], 0
        held.append(part)
        total += more
    if held:
        yield held


def shard_name(stem: str, number: int, count: int) -> str:
    """`stem.safetensors`, or `stem-00002-of-00005.safetensors`."""
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def index_name(stem: str) -> str:
    """Of the index of several weight files."""
    return f"{stem}.safetensors.index.json"


def write_index(folder: Path, stem: str) -> None:
    """Write the index of the weight files of a folder."""
    index: dict[str, str] = {}
    files = shard_files(folder, stem)
    for path in files:
        with safe_open(path, "pt") as file:
            index |= dict.fromkeys(file.keys(), path.name)
    about = {"metadata": {"total_size": sum(path.stat().st_size for path in files)}, "weight_map": index}
    (folder / index_name(stem)).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def shard_files(folder: Path, stem: str) -> list[Path]:
    """The weight files of a folder, in order; none if there are none."""
    single = folder / f"{stem}.safetensors"
    return [single] if single.is_file() else sorted(folder.glob(f"{stem}-?????-of-?????.safetensors"))


def write_model(
    folder: Path,
    model: Any,
    parts: Iterable[Tensors],
    *,
    converted: bool = False,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write config and tensors with transformers' own `save_pretrained`, shard by shard.

    Args:
        folder: existing and empty.
        model: its class, config and modules; its tensors are not looked at.
        parts: all tensors, by full name.
        converted: they are already as a checkpoint keeps them, and named so.
        extra: tensors that are no part of the model, by their names in a checkpoint; in files of their own.
    """
    built: list[Path] = []
    for shard in in_shards(parts, size_of):
        place = folder / f".shard-{len(built)}"
        tensors = {name: tensor for part in shard for name, tensor in part.items()}
        most = size_of(tensors) + 1
        with own_parameters(model):
            model.save_pretrained(
                place, state_dict=tensors, max_shard_size=most, save_original_format=not converted
            )
        if not built:
            for file in place.iterdir():  # config, generation config, modeling code
                if file.name != _SINGLE:
                    file.rename(folder / file.name)
        built.append(place / _SINGLE)
    for held in in_shards(({name: tensor} for name, tensor in (extra or {}).items()), size_of):
        place = folder / f".shard-{len(built)}"
        place.mkdir()
        built.append(place / _SINGLE)
        save_file(dict(chain.from_iterable(part.items() for part in held)), built[-1], {"format": "pt"})
    _name_shards(folder, built)


def _name_shards(folder: Path, built: list[Path]) -> None:
    """Give files their final names, and an index if there are several."""
    for number, path in enumerate(built, 1):
        path.rename(folder / shard_name(_STEM, number, len(built)))
        shutil.rmtree(path.parent)
    if len(built) > 1:
        write_index(folder, _STEM)


class ShardReader:
    """The tensors of a folder's weight files, read one at a time.

    Raises:
        ModelError: a file is damaged.
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        try:
            self._files = [safe_open(path, "pt") for path in shard_files(folder, stem)]
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder} cannot be read: {error}; a whole folder is expected") from error
        # By its name: the file that a tensor is in, and what it is called there.
        self._home = {key: (file, key) for file in self._files for key in file.keys()}  # noqa: SIM118 - not a dict

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def __getitem__(self, name: str) -> torch.Tensor:
        file, stored = self._home[name]
        tensor: torch.Tensor = file.get_tensor(stored)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read."""
        file, stored = self._home[name]
        return tuple(file.get_slice(stored).get_shape())

    def type(self, name: str) -> str:
        """Of a tensor, which is not read, as safetensors names it: F16, I32."""
        file, stored = self._home[name]
        return str(file.get_slice(stored).get_dtype())

    def renamed(self, names: Mapping[str, str]) -> "ShardReader":
        """The same tensors under other names, which `names` gives by those that they have here."""
        other = copy(self)
        other._home = {names.get(name, name): home for name, home in self._home.items()}
        return other

    @property
    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._home)

    def shapes_below(self, owner: str) -> dict[str, tuple[list[int], torch.dtype]]:
        """Shapes and types of what `below` reads; nothing is read but headers."""
        prefix = f"{owner}."
        found = {}
        for name, (file, stored) in self._home.items():
            if name.startswith(prefix):
                part = file.get_slice(stored)
                found[name.removeprefix(prefix)] = (part.get_shape(), _TYPES[part.get_dtype()])
        return found

    def below(self, owner: str) -> Tensors:
        """The tensors of a module, by their names in it."""
        prefix = f"{owner}."
        return {name.removeprefix(prefix): self[name] for name in self._home if name.startswith(prefix)}
