"""compressed-tensors, as llm-compressor and others write it: integers and floats of eight and of fewer bits.

Which scheme a Linear has is said by its config groups; the code of the format's own library decodes it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import match_targets
from torch import nn

from roundel.errors import ModelError
from roundel.formatting import first_line, kind_and_line
from roundel.model.checkpoint import Entry
from roundel.model.stored.form import SAVED_SO, Packed, Read, Tensors, misfit, owners

_PARTS = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "weight_global_scale")
_BESIDE = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "input_g_idx",
    "output_scale",
    "output_zero_point",
)
_CACHE = ("q_scale", "k_scale", "v_scale", "q_zero_point", "k_zero_point", "v_zero_point")
_CAST = (torch.float16, torch.bfloat16, torch.float32)
_FLOATS = ("BF16", "F16", "F32", "F64")


class Compressed:
    """compressed-tensors' files.

    Args:
        about: the quantization config.

    Raises:
        ModelError: it makes no sense, or weights are stored in a way that is not read.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        known = {key: value for key, value in about.items() if key in QuantizationConfig.model_fields}
        sparse = about.get("sparsity_config") or {}
        if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
            raise ModelError(
                f"the model stores its weights sparse ({sparse['format']}), which is not read: the original model is "
                "expected"
            )
        try:
            config = QuantizationConfig.model_validate(known)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"the quantization config of the model cannot be read ({first_line(error)}): the config.json "
                "that came with the weights is expected"
            ) from error
        self._format, self._as_stored = config.format, bool(about.get("dequantize"))
        self._schemes = [scheme for scheme in config.config_groups.values() if scheme.weights is not None]
        grids = sorted({_grid(scheme) for scheme in self._schemes})
        self.summary = "compressed-tensors" + (f" ({', '.join(grids)})" if grids else "")
        if any(scheme.input_activations is not None for scheme in config.config_groups.values()):
            self.summary += "; its quantization of inputs is left out"

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """Every Linear with scales."""
        found: dict[str, Packed] = {}
        for owner in owners(stored, "weight_scale"):
            weight = next((p for p in ("weight_packed", "weight") if f"{owner}.{p}" in stored), None)
            if weight is None:
                raise ModelError(
                    f"{owner}.weight_scale is there, and no weight that it belongs to: a whole model is expected; "
                    f"{SAVED_SO}"
                )
            entry = stored[f"{owner}.{weight}"]
            if entry.dtype in _FLOATS:
                raise ModelError(
                    f"{owner}.{weight} is stored unrounded beside its scale (quantization_status is not `compressed`): "
                    "the original model, or one that was saved compressed, is expected"
                )
            parts = {part: f"{owner}.{part}" for part in (weight, *_PARTS) if f"{owner}.{part}" in stored}
            found[f"{owner}.weight"] = Packed(parts, self._shape(owner, entry, parts, read))
        for owner in owners(stored, "weight_packed"):
            if f"{owner}.weight" not in found:
                raise ModelError(
                    f"{owner}.weight_scale is missing, without which {owner}.weight_packed cannot be read: a whole "
                    f"model is expected; {SAVED_SO}"
                )
        return found

    def _shape(self, owner: str, entry: Entry, parts: dict[str, str], read: Read) -> tuple[int, ...]:
        if "weight_shape" in parts:
            return tuple(int(n) for n in read(parts["weight_shape"]).flatten().tolist())
        if "weight_packed" not in parts:
            return entry.shape
        scheme = self.scheme_of(owner)
        assert scheme.weights is not None
        codes = 8 * (entry.end - entry.begin) // max(1, scheme.weights.num_bits)
        if not entry.shape or codes % entry.shape[0]:
            raise misfit(parts["weight_packed"], entry.shape, f"codes of {scheme.weights.num_bits} bits")
        return entry.shape[0], codes // entry.shape[0]

    def scheme_of(self, owner: str) -> QuantizationScheme:
        """Of the group whose targets name a Linear; that of the only group where a name was changed by the model."""
        like = nn.Linear(1, 1, bias=False, device="meta")
        matched = [(scheme, match_targets(owner, like, scheme.targets)) for scheme in self._schemes]
        matched = [pair for pair in matched if pair[1]]
        if not matched and len(self._schemes) == 1:
            return self._schemes[0]
        if not matched:
            raise ModelError(
                f"no config group of the quantization config speaks of {owner}, which is quantized: the config.json "
                "that came with the weights is expected"
            )
        # A name, or a pattern, goes before the class that all of them have.
        return min(matched, key=lambda pair: pair[1][0] == "Linear")[0]

    def is_beside(self, name: str) -> bool:
        """Scales of inputs, outputs, keys and values."""
        return name.rpartition(".")[2] in (*_BESIDE, *_CACHE)

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """By the library, as transformers does: from scales in the model's type, if the file says nothing else."""
        scheme = self.scheme_of(name.removesuffix(".weight"))
        layout = scheme.format or self._format
        try:
            compressor: Any = BaseCompressor.get_value_from_registry(layout)
            tensors = dict(parts)
            if not self._as_stored and tensors["weight_scale"].dtype in _CAST:
                tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
            dense: torch.Tensor = compressor.decompress(tensors, scheme)["weight"]
        except (KeyError, ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise ModelError(
                f"{name} cannot be read from compressed-tensors' {layout} ({kind_and_line(error)}): a whole "
                "model, or its original, is expected"
            ) from error
        return dense


def _grid(scheme: QuantizationScheme) -> str:
    weights = scheme.weights
    assert weights is not None
    group = f" in groups of {weights.group_size}" if (weights.group_size or 0) > 0 else ""
    return f"{weights.num_bits}-bit {getattr(weights.type, 'value', weights.type)}{group}"
