"""compressed-tensors folders read a Linear at a time, by the code of the format's own library.

transformers opens such a folder whole, or not at all. Here each Linear is decoded when it is wanted, as transformers
would: in the model's type, or, with `dequantize: true`, in the type in which the scales are stored.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
from transformers import AutoConfig

from roundel.activations.attach import FILE as ACTIVATIONS
from roundel.errors import ModelError
from roundel.formats.decoded import Decoded
from roundel.formats.shards import ShardReader
from roundel.model.classes import auto_class
from roundel.model.source import first_line

_PACKED = (".weight_packed", ".weight_scale")


def read_decoded(folder: Path, trust_remote_code: bool) -> Decoded:
    """The tensors of a folder, decoded when they are read.

    Raises:
        ModelError: it cannot be read so.
    """
    stored = ShardReader(folder)
    found = {name.removesuffix(part) for name in stored.names for part in _PACKED if name.endswith(part)}
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        schemes, dtype = _schemes(folder, written, trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} cannot be opened: {first_line(error)}") from error
    unknown = sorted(found - schemes.keys())
    if unknown:
        raise ModelError(
            f"{folder} keeps {unknown[0]} under another name than the model, or as a part of something: such a folder "
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


def _schemes(
    folder: Path, written: dict[str, Any], trust_remote_code: bool
) -> tuple[dict[str, QuantizationScheme], torch.dtype]:
    """The scheme of every Linear that the config means, and the model's type."""
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    del config.quantization_config
    with init_empty_weights():
        skeleton: Any = auto_class(config, str(folder)).from_config(config, trust_remote_code=trust_remote_code)
    known = {key: value for key, value in written.items() if key in QuantizationConfig.model_fields}
    apply_quantization_config(skeleton, QuantizationConfig.model_validate(known))
    named = {name: getattr(module, "quantization_scheme", None) for name, module in skeleton.named_modules()}
    schemes = {name: scheme for name, scheme in named.items() if scheme is not None}
    return schemes, config.dtype or torch.float32
