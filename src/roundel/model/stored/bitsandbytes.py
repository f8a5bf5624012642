"""bitsandbytes' files, which hold blocks of a flattened weight.

Four bits (QLoRA, arXiv 2305.14314): a code stands for one of 16 values, of which a block shares one factor.

    P.weight                            two codes in each byte, the upper half first
    P.weight.absmax                     factors of the blocks; as uint8 they are codes of
    P.weight.nested_absmax, .nested_quant_map   a second level, over blocks of factors, plus an offset
    P.weight.quant_map                  the 16 values
    P.weight.quant_state.bitsandbytes__nf4      JSON in bytes: shape, block size, offset

Eight bits (LLM.int8(), arXiv 2208.07339): `P.weight` int8 `[out, in]`, times `P.SCB` `[out]` over 127.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

from roundel.errors import ModelError
from roundel.formatting import kind_and_line
from roundel.model.checkpoint import Entry
from roundel.model.stored.form import SAVED_SO, Packed, Read, Tensors, misfit, wanted

_STATE = ".quant_state.bitsandbytes__"
_FACTORS = ("absmax", "quant_map")
_NESTED = ("nested_absmax", "nested_quant_map")


class FourBit:
    """NF4 and FP4."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        kind = str(about.get("bnb_4bit_quant_type") or "nf4").upper()
        self.summary = f"bitsandbytes' {kind}"

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """Every tensor with a state."""
        found: dict[str, Packed] = {}
        for name in stored:
            weight, mark, _ = name.partition(_STATE)
            if not mark:
                continue
            state = _state(name, read(name))
            needed = _FACTORS + (_NESTED if "nested_blocksize" in state else ())
            parts = wanted(stored, weight, needed) | {"state": name, "weight": weight}
            shape = tuple(state["shape"])
            count = torch.Size(shape).numel()
            if weight not in stored or 2 * (stored[weight].end - stored[weight].begin) < count:
                raise misfit(name, shape, f"the bytes of {weight}")
            if stored[parts["absmax"]].shape != (-(-count // state["blocksize"]),):
                raise misfit(parts["absmax"], stored[parts["absmax"]].shape, f"{shape} in its blocks")
            found[weight] = Packed(parts, shape)
        return found

    def is_beside(self, name: str) -> bool:
        """There is nothing of the kind."""
        return False

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """Values times factors, in float32."""
        state = _state(name, parts["state"])
        factors = parts["absmax"]
        if "nested_absmax" in parts:
            nested = _each(parts["nested_absmax"].float(), state["nested_blocksize"], factors.numel())
            factors = parts["nested_quant_map"].float()[factors.int()] * nested + state["nested_offset"]
        shape = torch.Size(state["shape"])
        packed = parts["weight"].contiguous().view(torch.uint8).flatten().int()
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[: shape.numel()]
        factors = _each(factors.float(), state["blocksize"], shape.numel())
        return (parts["quant_map"].float()[codes] * factors).view(shape)


class EightBit:
    """LLM.int8()."""

    summary = "bitsandbytes' 8-bit integers"

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """Every integer matrix with the maxima of its rows."""
        found: dict[str, Packed] = {}
        for name, entry in stored.items():
            if not name.endswith(".weight") or entry.dtype != "I8":
                continue
            owner = name.removesuffix(".weight")
            parts = wanted(stored, owner, ("weight", "SCB"))
            if len(entry.shape) != 2 or torch.Size(stored[parts["SCB"]].shape).numel() != entry.shape[0]:
                raise misfit(parts["SCB"], stored[parts["SCB"]].shape, f"a weight of the shape {entry.shape}")
            found[name] = Packed(parts, entry.shape)
        return found

    def is_beside(self, name: str) -> bool:
        """The order in which a kernel had the weight."""
        return name.endswith(".weight_format")

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """Integers times the maxima of their rows, in float32."""
        return parts["weight"].float() * parts["SCB"].float().view(-1, 1) * (1 / 127)


def _each(factors: torch.Tensor, block: int, count: int) -> torch.Tensor:
    """The factor of each of so many numbers."""
    return factors.flatten().repeat_interleave(block)[:count]


def _state(name: str, stored: torch.Tensor) -> dict[str, Any]:
    try:
        found = json.loads(bytes(stored.view(torch.uint8).tolist()))
        checked = {"shape": [int(n) for n in found["shape"]], "blocksize": int(found["blocksize"])}
        if "nested_blocksize" in found:
            checked["nested_blocksize"] = int(found["nested_blocksize"])
            checked["nested_offset"] = float(found["nested_offset"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"{name} cannot be read ({kind_and_line(error)}): the state of a weight as bitsandbytes writes it "
            f"is expected; {SAVED_SO}"
        ) from error
    return checked
