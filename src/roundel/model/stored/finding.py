"""Whether a named model is stored quantized."""

from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from roundel.errors import ModelError
from roundel.model.checkpoint import SAFETENSORS
from roundel.model.stored.checkpoint import StoredCheckpoint
from roundel.model.stored.choice import find_form, forget_quantization, is_read, method_name, quantization_of
from roundel.model.stored_types import PLAIN_TYPES

# Where transformers quantizes the inputs of Linears too, or has a better reader.
_RUN_BY_TRANSFORMERS = ("compressed-tensors",)


def find_stored(
    source: str, folder: Path, config: Any, *, trust_transformers: bool = False, weights_only: bool = True
) -> StoredCheckpoint | None:
    """The checkpoint of a quantized model, whose config then speaks of quantization no more; None of an ordinary model.

    Args:
        source: the model's name.
        folder: of its files.
        config: its config.
        trust_transformers: None, too, for a form that transformers may read and Roundel does not.
        weights_only: what the model does to its inputs does not matter.

    Raises:
        ModelError: it is stored in a form that is not read, or its files are damaged.
    """
    about = quantization_of(config)
    if about is None:
        return None
    if trust_transformers and not is_read(about):
        _refuse_unknown(source, about)
        return None
    if not weights_only and method_name(about) in _RUN_BY_TRANSFORMERS:
        return None
    form = find_form(source, about)
    if not any((folder / name).is_file() for name in SAFETENSORS):
        raise ModelError(
            f"{source} holds no safetensors, and quantized weights ({form.summary}) are read from these alone: "
            "model.safetensors, one file or sharded, is expected"
        )
    stored = StoredCheckpoint(folder, form, config.dtype if config.dtype in PLAIN_TYPES else None)
    forget_quantization(config)
    config.dtype = stored.dtype
    return stored


def _refuse_unknown(source: str, about: Any) -> None:
    """transformers would load the packed weights of a method that it does not know as if they were plain ones."""
    if isinstance(about, dict) and "quant_method" not in about:
        return  # transformers asks for the name
    name = method_name(about)
    if not any(key.startswith(name) for key in AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise ModelError(
            f"{source} is quantized by {name}, which transformers does not know: another model is expected, or a "
            "transformers that can run this one"
        )
