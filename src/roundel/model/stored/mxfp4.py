"""MXFP4, as gpt-oss stores its experts: four-bit floats, 32 of which share a power of two.

    P_blocks [experts, out, in / 32, 16] uint8: two numbers in each byte, the lower half first
    P_scales [experts, out, in / 32] uint8: exponents, biased by 127

for P = `experts.gate_up_proj` or `experts.down_proj`, whose dense tensor is `[experts, in, out]`.
"""

from collections.abc import Mapping

import torch

from roundel.errors import ModelError
from roundel.model.checkpoint import Entry
from roundel.model.stored.float4 import exponents, unpack_float4
from roundel.model.stored.form import SAVED_SO, Packed, Read, Tensors, misfit

_BLOCKS, _SCALES = "_blocks", "_scales"


class Mxfp4:
    """Experts of four bits."""

    summary = "MXFP4, 4-bit floats in blocks of 32"

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """Every tensor of blocks, with its scales."""
        found: dict[str, Packed] = {}
        for name, entry in stored.items():
            for end, other in ((_BLOCKS, _SCALES), (_SCALES, _BLOCKS)):
                if name.endswith(end) and name.removesuffix(end) + other not in stored:
                    raise ModelError(
                        f"{name.removesuffix(end)}{other} is missing, without which {name} cannot be read: a whole "
                        f"model is expected; {SAVED_SO}"
                    )
            if not name.endswith(_BLOCKS):
                continue
            weight = name.removesuffix(_BLOCKS)
            scales = stored[weight + _SCALES].shape
            if len(entry.shape) < 3 or entry.shape[:-1] != scales or entry.dtype != "U8":
                raise misfit(name, entry.shape, f"scales of the shape {scales}")
            *outer, rows, blocks, size = entry.shape
            found[weight] = Packed(
                {"blocks": name, "scales": weight + _SCALES}, (*outer, 2 * blocks * size, rows)
            )
        return found

    def is_beside(self, name: str) -> bool:
        """There is nothing of the kind."""
        return False

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """Numbers times powers of two, input channels first; exact in float32, and in bfloat16."""
        numbers = unpack_float4(parts["blocks"]) * exponents(parts["scales"]).unsqueeze(-1)
        return numbers.flatten(-2).transpose(-1, -2).contiguous()
