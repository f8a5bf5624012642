"""The integers of a GGUF file under the names of the model that it was made of, their rows in the model's order."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from roundel.errors import ModelError
from roundel.formats.container import Integers
from roundel.formats.gguf.file import open_file
from roundel.formats.gguf.placing import layout_of
from roundel.grid.block_bytes import from_bytes
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.linears import LinearView


def integers_in(path: Path, model: Any, schemes: Mapping[str, Scheme]) -> Integers:
    """Read them when they are asked for.

    Args:
        path: of the file.
        model: names and shapes; tensors may be absent.
        schemes: of its quantized Linears.

    Raises:
        ModelError: the file is damaged; so does what is returned, where it is of other schemes.
        FormatError: its architecture is not known.
    """
    file = open_file(path)
    layout = layout_of(model, file.arch)

    @lru_cache(maxsize=2)  # experts share a tensor, or two
    def rows_of(name: str, columns: int) -> torch.Tensor:
        return file.raw(name).view(*file.tensors[name].shape[:-1], columns)

    def weight(name: str) -> QuantizedWeight:
        scheme, (out, in_features) = schemes[name], LinearView(name, model.get_submodule(name)).shape
        block = scheme.block_type
        assert block is not None
        assert scheme.type is not None
        columns = in_features // block.block * block.bytes
        rows = torch.empty(out, columns, dtype=torch.uint8)
        for place in layout[f"{name}.weight"]:
            if place.name not in file.tensors or file.tensors[place.name].kind.name.lower() != scheme.type:
                raise ModelError(
                    f"{place.name} of {path} is no tensor of {scheme.type}, as its manifest says: a whole folder is "
                    "expected"
                )
            found = rows_of(place.name, columns)
            found = found if place.expert is None else found[place.expert]
            rows[slice(None) if place.rows is None else place.rows] = found
        return from_bytes(rows, scheme.type)

    return weight
