"""Roundel's own container: everything that a QuantizedWeight holds, in its real size.

`roundel.safetensors` (integers.py says which tensors) beside an ordinary config.json and tokenizer; the name is not
one that transformers looks for, so that it says "no weights" instead of filling layers with random values. Where
Roundel is imported, it knows of the name by `quantization_config` in config.json (workflows/hf_quantizer.py). All other
tensors of the model are there under their own names.

A group size that does not divide a row, rows that are no multiple of a tile, biases, Conv1D, any mix of schemes: all
of it fits.
"""

import copy
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from roundel.activations.scheme import Activations
from roundel.errors import FormatError
from roundel.formats.container import Integers, Layer, OfFolders
from roundel.formats.content import Content, Piece
from roundel.formats.decoded import Decoded, open_decoded
from roundel.formats.integers import IntegerFiles, check_integers, read_about, write_integer_files
from roundel.formats.readers import Readers
from roundel.formats.reload import compare, compare_model
from roundel.formats.shards import ShardReader, index_name, shard_files, write_index
from roundel.formats.source_files import SourceFiles
from roundel.grid.scheme import Scheme
from roundel.grid.serialization import unpack_weight

FILE = "roundel"


class RoundelContainer(OfFolders):
    """Writes and reads Roundel's own container."""

    name = "roundel"

    def check(self, layers: list[Layer], model: Any, activations: Activations, files: SourceFiles) -> None:
        """It carries every setting."""

    def readers(self, layers: list[Layer], model: Any, activations: Activations) -> Readers:
        """No other."""
        return Readers(
            ("roundel",), "For other clients take --format compressed-tensors or dense, which carry less"
        )

    def write(self, folder: Path, content: Content) -> None:
        """Write config.json, generation_config.json and roundel.safetensors, in several files with their index."""
        extra = (Piece(others={name: tensor}) for name, tensor in content.extra.items())
        write_integer_files(folder, FILE, content.model, chain(map(_untied, content.written_pieces()), extra))
        write_config(folder, content.model, write_about(folder, activations=content.activations is not None))

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Read the folder back: the same integers bit for bit, and the same model."""
        check_integers(folder, FILE, content)
        if content.whole:
            model, _ = open_decoded(folder, read_decoded(folder), trust_remote_code, streamed=False)
            compare_model(model, content)
            return
        stored = ShardReader(folder, FILE)
        for piece in map(_untied, content.written_pieces()):
            for name, tensor in piece.others.items():
                if name not in stored:
                    raise FormatError(f"{name} is not in the written files; please report this")
                compare(name, stored[name], tensor)

    def decoded(self, folder: Path, trust_remote_code: bool, *, streamed: bool) -> Decoded | None:
        """In the model's own type; transformers does not know this format."""
        return read_decoded(folder)

    def integers(self, folder: Path, model: Any, schemes: Mapping[str, Scheme]) -> Integers:
        """As they were written."""
        return IntegerFiles(folder, FILE).weight


def write_about(folder: Path, *, activations: bool) -> dict[str, Any]:
    """What config.json is to say to transformers' plug-in, of the weight files of a folder; several get an index.

    Args:
        folder: with its weight files.
        activations: are quantized, too.
    """
    several = len(shard_files(folder, FILE)) > 1
    if several:
        write_index(folder, FILE)
    weights = index_name(FILE) if several else f"{FILE}.safetensors"
    return {"quant_method": "roundel", "weights": weights, "activations": activations}


def write_config(folder: Path, model: Any, about: dict[str, Any]) -> None:
    """Write config.json and generation_config.json.

    Args:
        folder: the output.
        model: whose.
        about: its quantization_config.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]  # of a model made in memory it is not said
    config.dtype = model.dtype  # else transformers takes the type of the first scale that it finds
    config.quantization_config = about
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _untied(piece: Piece) -> Piece:
    """Tied tensors are stored once, under their first name; the model ties them again."""
    others: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in piece.others.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen or not tensor.numel():
            others[name] = tensor
        seen.add(place)
    return Piece(piece.weights, others)


def is_container(path: str | Path) -> bool:
    """Whether a folder holds a model in this container."""
    return bool(shard_files(Path(path).expanduser(), FILE))


def read_decoded(folder: Path) -> Decoded:
    """The tensors of a folder, dequantized when they are read.

    Raises:
        ModelError: it cannot be read.
    """
    stored = ShardReader(folder, FILE)
    layers: dict[str, Any] = {}
    for file in shard_files(folder, FILE):
        about = read_about(file)
        layers |= about["layers"]
        dtype = getattr(torch, about["dtype"])

    def decode(name: str) -> torch.Tensor:
        layer = layers[name]
        tensors = {f"{name}.{part}": tensor for part, tensor in stored.below(name).items()}
        weight = unpack_weight(tensors, name, layer["shape"], Scheme(**layer["scheme"]))
        dense = weight.dequantize(dtype)
        return dense.t().contiguous() if layer["transposed"] else dense

    return Decoded(stored, layers, decode, dtype)
