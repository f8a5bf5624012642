"""The tensors of a GGUF file as a model has them, decoded when they are asked for: a layout read backwards."""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from roundel.formats.gguf.file import GgufFile, open_file
from roundel.formats.gguf.layout import Place
from roundel.formats.gguf.moving import is_stack, transposed_in
from roundel.formats.gguf.placing import layout_of

_BACK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "squeezed": lambda tensor: tensor.unsqueeze(1),
    "minus exp": lambda tensor: torch.log(-tensor),
}
"""Undoes `moving.CHANGES`."""


class GgufTensors(Mapping[str, torch.Tensor]):
    """The tensors that a file has of a model, by their names there.

    Args:
        path: of the file.
        model: names and shapes; tensors may be absent.

    Raises:
        ModelError: the file is damaged.
        FormatError: its architecture is not known.
    """

    def __init__(self, path: Path, model: Any) -> None:
        self._file: GgufFile = open_file(path)
        self._transposed = transposed_in(model)
        self._shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self._layout = {
            name: places
            for name, places in layout_of(model, self._file.arch).items()
            if name in self._shapes and places and self._fits(places, self._shapes[name])
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        places = self._layout[name]
        shape, turned = self._shapes[name], name in self._transposed
        mine = torch.empty(shape).mT.contiguous() if turned else torch.empty(shape)
        for place in places:
            found = self._read(place)
            part = mine[place.expert] if is_stack(name, places) else mine
            rows = slice(None) if place.rows is None else place.rows
            part[rows] = found.view(part[rows].shape)
        return mine.mT.contiguous() if turned else mine

    def kinds(self, name: str) -> set[str]:
        """How the numbers of a tensor are stored, `q4_0` for example; none of one that is changed on the way."""
        places = self._layout[name]
        if any(place.plus or place.through for place in places):
            return set()
        return {self._file.tensors[place.name].kind.name.lower() for place in places}

    def _fits(self, places: list[Place], shape: torch.Size) -> bool:
        """Whether the file has as many numbers as the tensor."""
        count = 0
        for place in places:
            if place.name not in self._file.tensors:
                return False
            found = self._file.tensors[place.name].shape
            count += prod(found if place.expert is None else found[1:])
        return count == prod(shape)

    def _read(self, place: Place) -> torch.Tensor:
        found = self._file.tensor(place.name, place.expert)
        found = _BACK[place.through](found) if place.through else found
        return found - place.plus if place.plus else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout)

    def __len__(self) -> int:
        return len(self._layout)
