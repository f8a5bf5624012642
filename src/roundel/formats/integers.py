"""Integers in a file: everything that QuantizedWeights hold, in its real size.

The tensors of a Linear P are P.codes, P.scale and so on (grid/serialization.py has the list).

The header's metadata entry `roundel` is JSON: version, the model's dtype, and for every P its shape, its scheme, and
whether the module stores [in, out] (GPT-2). Any other tensor has a name of its own.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from roundel.errors import FormatError, ModelError
from roundel.formats.content import Content, Piece
from roundel.formats.shards import ShardReader, in_shards, shard_files, shard_name, size_of
from roundel.formatting import kind_and_line
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.serialization import pack_weight, unpack_weight
from roundel.model.linears import LinearView

# Beside dense weights; not a name that clients take for weights.
INTEGERS = "roundel_integers"
_VERSION = 1


def write_integers(
    path: Path,
    model: Any,
    weights: dict[str, QuantizedWeight],
    others: dict[str, torch.Tensor] | None = None,
    note: Any = None,
) -> None:
    """Write the integers of a model's Linears, other tensors beside them, and a note as plain data."""
    tensors = dict(others or {})
    layers = {}
    for name, weight in weights.items():
        for part, tensor in pack_weight(weight).items():
            tensors[f"{name}.{part}"] = tensor
        module = model.get_submodule(name)
        transposed = LinearView(name, module).transposed or getattr(module, "stands_for_transposed", False)
        layers[name] = {
            "shape": list(weight.shape),
            "transposed": transposed,
            "scheme": weight.scheme.model_dump(mode="json"),
        }
    dtype = str(model.dtype).removeprefix("torch.")
    about = {"version": _VERSION, "dtype": dtype, "layers": layers}
    if note is not None:
        about["note"] = note
    # One entry only: safetensors writes several in an order that differs from run to run.
    save_file(tensors, path, {"roundel": json.dumps(about)})


def write_integer_files(
    folder: Path, stem: str, model: Any, pieces: Iterable[Piece], most: int | None = None
) -> None:
    """Write pieces into one file, or several numbered ones of `most` bytes, by default of `SHARD_BYTES`."""
    built: list[Path] = []
    for shard in in_shards(pieces, _size, most):
        built.append(folder / f".{stem}-{len(built)}")
        weights = {name: weight for piece in shard for name, weight in piece.weights.items()}
        others = {name: tensor for piece in shard for name, tensor in piece.others.items()}
        write_integers(built[-1], model, weights, others)
    for number, path in enumerate(built, 1):
        path.rename(folder / shard_name(stem, number, len(built)))


def check_integers(folder: Path, stem: str, content: Content) -> None:
    """Read the files back, one at a time.

    Raises:
        FormatError: integers that are missing or differ from what was to be written.
    """
    files = iter(shard_files(folder, stem))
    found: dict[str, QuantizedWeight] = {}
    for piece in content.read_pieces():
        for name, weight in piece.weights.items():
            if name not in found:  # it begins the next file
                path = next(files, None)
                found = read_integers(path).weights if path else {}
            check_read_back(name, found.pop(name, None), weight)


def check_read_back(name: str, found: QuantizedWeight | None, written: QuantizedWeight) -> None:
    """Raise FormatError unless a weight comes back from its file as it went in, bit for bit."""
    if found is None or not found.equals(written):
        raise FormatError(f"{name} is read back with other integers than were written; please report this")


def _size(piece: Piece) -> int:
    return sum(weight.stored_bits() for weight in piece.weights.values()) // 8 + size_of(piece.others)


@dataclass(frozen=True)
class Stored:
    """The content of a file.

    Attributes:
        weights: the integers by layer name.
        transposed: layers whose module stores `[in, out]`.
        others: every other tensor by its name.
        dtype: the model's.
        note: what was written with them.
    """

    weights: dict[str, QuantizedWeight]
    transposed: set[str]
    others: dict[str, torch.Tensor]
    dtype: torch.dtype
    note: Any = None


def read_integers(path: Path) -> Stored:
    """Read integers and other tensors of a file.

    Raises:
        ModelError: damaged, or of a later version.
    """
    try:
        about = read_about(path)
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        weights = {
            name: unpack_weight(tensors, name, layer["shape"], Scheme(**layer["scheme"]))
            for name, layer in about["layers"].items()
        }
    except (OSError, SafetensorError, KeyError, ValueError, FormatError) as error:
        raise ModelError(
            f"{path} cannot be read: {kind_and_line(error)}; a whole folder is expected"
        ) from error
    transposed = {name for name, layer in about["layers"].items() if layer["transposed"]}
    return Stored(weights, transposed, tensors, getattr(torch, about["dtype"]), about.get("note"))


def read_note(path: Path) -> Any:
    """The note of a file, without its tensors.

    Raises:
        ModelError: damaged, or of a later version.
    """
    return read_about(path).get("note")


def read_about(path: Path) -> dict[str, Any]:
    """What the header of a file says of its integers.

    Raises:
        ModelError: damaged, or of a later version.
    """
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["roundel"])
            if about["version"] > _VERSION:
                raise ModelError(f"{path} has version {about['version']}: a newer roundel is expected")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read: {kind_and_line(error)}; a whole folder is expected"
        ) from error
    return about


class IntegerFiles:
    """The integers of a folder, read a Linear at a time.

    Args:
        folder: with the files.
        stem: of their names.

    Attributes:
        schemes: the grid of every Linear, by its name.

    Raises:
        ModelError: damaged, or of a later version.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._stored = ShardReader(folder, stem)
        self._layers = {n: a for f in shard_files(folder, stem) for n, a in read_about(f)["layers"].items()}
        self.schemes = {name: Scheme(**about["scheme"]) for name, about in self._layers.items()}

    def weight(self, name: str) -> QuantizedWeight:
        """Of a Linear."""
        tensors = {f"{name}.{part}": tensor for part, tensor in self._stored.below(name).items()}
        return unpack_weight(tensors, name, self._layers[name]["shape"], self.schemes[name])
