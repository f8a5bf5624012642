"""Roundel's own container: everything that a QuantizedWeight holds, in its real size.

`roundel.safetensors` (integers.py says which tensors) beside an ordinary config.json and tokenizer; the name is not
one that transformers looks for, so that it says "no weights" instead of filling layers with random values. All other
tensors of the model are there under their own names.

A group size that does not divide a row, rows that are no multiple of a tile, biases, Conv1D, any mix of schemes: all
of it fits.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from roundel.activations.scheme import Activations
from roundel.errors import FormatError, ModelError
from roundel.formats.container import Layer
from roundel.formats.content import Content, Piece
from roundel.formats.integers import check_integers, read_integers, write_integer_files
from roundel.formats.reload import compare, compare_model
from roundel.formats.shards import ShardReader, shard_files
from roundel.model.experts import divide, joined, stacks_in
from roundel.model.source import first_line

FILE = "roundel"


class RoundelContainer:
    """Writes and reads Roundel's own container."""

    name = "roundel"

    def check(self, layers: list[Layer], model: Any, activations: Activations) -> None:
        """It carries every setting."""

    def write(self, folder: Path, content: Content) -> None:
        """Write config.json, generation_config.json and roundel.safetensors."""
        model = content.model
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        write_integer_files(folder, FILE, model, map(_untied, content.read_pieces()))

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Read the folder back: the same integers bit for bit, and the same model."""
        check_integers(folder, FILE, content)
        if content.whole:
            compare_model(open_container(folder, trust_remote_code), content)
            return
        stored = ShardReader(folder, FILE)
        for piece in map(_untied, content.read_pieces()):
            for name, tensor in piece.others.items():
                if name not in stored:
                    raise FormatError(f"{name} is not in the written files; please report this")
                compare(name, stored[name], tensor)


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


def open_container(folder: str | Path, trust_remote_code: bool = False) -> Any:
    """The model of a folder with dequantized weights, on the CPU, as `from_pretrained` would give it.

    Raises:
        ModelError: it cannot be read.
    """
    state: dict[str, torch.Tensor] = {}
    for file in shard_files(Path(folder).expanduser(), FILE):
        stored = read_integers(file)
        state |= stored.others
        for name, weight in stored.weights.items():
            dense = weight.dequantize(stored.dtype)
            state[f"{name}.weight"] = dense.t().contiguous() if name in stored.transposed else dense
    path = str(Path(folder).expanduser())
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        divide(skeleton)
        model, info = type(skeleton).from_pretrained(
            None,
            config=config,
            state_dict=joined(state, stacks_in(skeleton)),
            dtype=stored.dtype,
            output_loading_info=True,
        )
        if (Path(path) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"{folder} cannot be opened: {first_line(error)}") from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"tensors are missing in {folder} ({some}, ...): a whole folder is wanted")
    return model.eval().requires_grad_(False)
