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

from roundel.activations.attach import ActivationQuantizer
from roundel.activations.scheme import Activations
from roundel.errors import ModelError
from roundel.formats.container import Layer
from roundel.formats.integers import Stored, check_integers, read_integers, write_integers
from roundel.formats.reload import compare_models
from roundel.grid import QuantizedWeight
from roundel.model.source import first_line

FILE = "roundel.safetensors"


class RoundelContainer:
    """Writes and reads Roundel's own container."""

    name = "roundel"

    def check(self, layers: list[Layer], model_dtype: torch.dtype, activations: Activations) -> None:
        """It carries every setting."""

    def write(
        self,
        folder: Path,
        model: Any,
        weights: dict[str, QuantizedWeight],
        activations: ActivationQuantizer | None = None,
    ) -> None:
        """Write config.json, generation_config.json and roundel.safetensors."""
        others: dict[str, torch.Tensor] = {}
        seen: set[tuple[int, torch.Size]] = set()
        for name, tensor in model.state_dict().items():
            # Tied tensors are stored once, under their first name; the model ties them again.
            place = (tensor.data_ptr(), tensor.shape)
            if name.removesuffix(".weight") not in weights and (place not in seen or not tensor.numel()):
                others[name] = tensor.detach().cpu().contiguous()
            seen.add(place)
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        write_integers(folder / FILE, model, weights, others)

    def verify(
        self, folder: Path, model: Any, weights: dict[str, QuantizedWeight], trust_remote_code: bool
    ) -> None:
        """Read the folder back: the same integers bit for bit, and the same model."""
        stored = read_integers(folder / FILE)
        check_integers(stored.weights, weights)
        compare_models(_build(stored, folder, trust_remote_code), model, weights)


def is_container(path: str | Path) -> bool:
    """Whether a folder holds a model in this container."""
    return (Path(path).expanduser() / FILE).is_file()


def open_container(folder: str | Path, trust_remote_code: bool = False) -> Any:
    """The model of a folder with dequantized weights, on the CPU, as `from_pretrained` would give it.

    Raises:
        ModelError: it cannot be read.
    """
    return _build(read_integers(Path(folder).expanduser() / FILE), folder, trust_remote_code)


def _build(stored: Stored, folder: str | Path, trust_remote_code: bool) -> Any:
    """The model of a folder whose tensors are read already."""
    state = dict(stored.others)
    for name, weight in stored.weights.items():
        dense = weight.dequantize(stored.dtype)
        state[f"{name}.weight"] = dense.t().contiguous() if name in stored.transposed else dense
    path = str(Path(folder).expanduser())
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
        model, info = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=stored.dtype, output_loading_info=True
        )
        if (Path(path) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"{folder} cannot be opened: {first_line(error)}") from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"tensors are missing in {folder} ({some}, ...): a whole folder is wanted")
    return model.eval().requires_grad_(False)
