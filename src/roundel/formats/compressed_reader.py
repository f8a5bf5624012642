"""compressed-tensors folders read a Linear at a time, by the code of the format's own library.

transformers opens such a folder whole, or not at all. Here each Linear is decoded when it is needed, as transformers
would: in the model's type, or, with `dequantize: true`, in the type in which the scales are stored. Where a checkpoint
has other names than the model (text decoders inside others mostly do), they are turned into the model's.
"""

import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
from transformers import AutoConfig

from roundel.activations.attach import FILE as ACTIVATIONS
from roundel.errors import ModelError
from roundel.formats.decoded import Decoded
from roundel.formats.shards import ShardReader
from roundel.formatting import kind_and_line
from roundel.model.classes import auto_class
from roundel.model.names import loaded_names
from roundel.model.turns import empty_weights, in_turn

_PACKED = (".weight_packed", ".weight_scale")
_PARTS = (*_PACKED, ".weight_shape", ".weight_zero_point", ".input_scale", ".input_zero_point")


@in_turn
def read_decoded(folder: Path, trust_remote_code: bool) -> Decoded:
    """The tensors of a folder, decoded when they are read.

    Raises:
        ModelError: it cannot be read so.
    """
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        skeleton, dtype = _skeleton(folder, trust_remote_code)
        reader = ShardReader(folder)
        stored = reader.renamed(_model_names(reader, skeleton))
        schemes = _schemes(skeleton, written)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} cannot be opened: {kind_and_line(error)}") from error
    found = {name.removesuffix(part) for name in stored.names for part in _PACKED if name.endswith(part)}
    unknown = sorted(found - schemes.keys())
    if unknown:
        raise ModelError(
            f"{folder} keeps {unknown[0]} as a part of something, or the model has no such Linear: such a folder "
            "cannot be read block by block; it has to be measured whole"
        )
    rounding = [name for name in found if schemes[name].input_activations is not None]
    if rounding and not (folder / ACTIVATIONS).is_file():
        raise ModelError(
            f"{folder} quantizes the inputs of {rounding[0]} by other code than Roundel's: such a folder cannot be "
            "read block by block; it has to be measured whole"
        )

    def decode(name: str) -> torch.Tensor:
        tensors, scheme = stored.below(name), schemes[name]
        if not written.get("dequantize"):
            tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
        compressor: Any = BaseCompressor.get_value_from_registry(scheme.format or written["format"])
        dense: torch.Tensor = compressor.decompress(tensors, scheme)["weight"]
        return dense.to(dtype)

    return Decoded(stored, found, decode, dtype)


def _model_names(stored: ShardReader, model: Any) -> dict[str, str]:
    """The model's names of a folder's tensors: transformers knows weights, and the parts of a packed one go along."""
    weights = {
        name: f"{name.removesuffix(p)}.weight" for name in stored.names for p in _PARTS if name.endswith(p)
    }
    loaded = loaded_names(model, {weights.get(name, name) for name in stored.names})
    found = {}
    for name in stored.names:
        weight = weights.get(name, name)
        renamed = loaded.get(weight, weight)
        part = name.removeprefix(weight.removesuffix(".weight"))
        found[name] = f"{renamed.removesuffix('.weight')}{part}" if name in weights else renamed
    return found


def _skeleton(folder: Path, trust_remote_code: bool) -> tuple[Any, torch.dtype]:
    """The model without its weights, and its type."""
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    del config.quantization_config
    with empty_weights():
        skeleton = auto_class(config, str(folder)).from_config(config, trust_remote_code=trust_remote_code)
    return skeleton, config.dtype or torch.float32


def _schemes(skeleton: Any, written: dict[str, Any]) -> dict[str, QuantizationScheme]:
    """The scheme of every Linear that the config means."""
    known = {key: value for key, value in written.items() if key in QuantizationConfig.model_fields}
    apply_quantization_config(skeleton, QuantizationConfig.model_validate(known))
    named = {name: getattr(module, "quantization_scheme", None) for name, module in skeleton.named_modules()}
    return {name: scheme for name, scheme in named.items() if scheme is not None}
