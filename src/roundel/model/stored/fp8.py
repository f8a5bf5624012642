"""Eight-bit floating point with scales: of blocks (DeepSeek-V3, arXiv 2412.19437, section 3.3), of rows, of tensors.

    P.weight           [out, in] float8; int8 holds two 4-bit numbers each
    P.weight_scale_inv [ceil(out / m), ceil(in / n)]: what a block of m x n is multiplied by (in spite of its name), as
                       a float, or as an exponent of two
    P.weight_scale     the same, in FBGEMM's and ModelOpt's files

Experts may lie in one tensor `[experts, out, in]`, `experts.gate_up_proj` with `experts.gate_up_proj_scale_inv`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from roundel.errors import ModelError
from roundel.model.checkpoint import Entry
from roundel.model.stored.float4 import exponents, unpack_float4
from roundel.model.stored.form import SAVED_SO, Packed, Read, Tensors, misfit

_EIGHT_BIT = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_BESIDE = ("activation_scale", "activation_scale_inv", "input_scale", "k_scale", "v_scale", "input_scale_ub")


class Fp8:
    """Weights of eight bits with scales.

    Args:
        about: the quantization config.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        block = about.get("weight_block_size")
        if about.get("quant_method") == "mxfp8":
            block = block or [1, 32]
        if block is not None and not _is_block(block):
            raise ModelError(
                f"weight_block_size is {block!r} in the quantization config: two numbers, as in [128, 128], are "
                "expected"
            )
        self._block: tuple[int, int] | None = tuple(block) if block else None  # type: ignore[assignment]

    @property
    def summary(self) -> str:
        """With the block."""
        if self._block is None:
            return "FP8 with a scale per row or tensor"
        return f"FP8 blocks of {self._block[0]}x{self._block[1]}"

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """Every tensor that has a scale."""
        found: dict[str, Packed] = {}
        for name, entry in stored.items():
            scale = next((name + end for end in _SCALES if name + end in stored), None)
            if entry.dtype in (*_EIGHT_BIT, "I8") and scale is not None:
                shape = entry.shape if entry.dtype != "I8" else (*entry.shape[:-1], 2 * entry.shape[-1])
                if len(shape) < 2:
                    raise misfit(name, shape, "a matrix")
                found[name] = Packed({"weight": name, "scale": scale}, shape)
                _spread(scale, shape[-2:], stored[scale].shape, self._block)
            elif entry.dtype in _EIGHT_BIT and not self.is_beside(name):
                raise ModelError(
                    f"{name}_scale_inv is missing, without which {name} cannot be read: a whole model is expected; "
                    f"{SAVED_SO}"
                )
        used = {part for packed in found.values() for part in packed.parts.values()}
        for name in stored:
            if name.endswith("_scale_inv") and name not in used and not self.is_beside(name):
                raise ModelError(
                    f"{name} is there, and no weight of 8 bits that it belongs to: a whole model is expected; "
                    f"{SAVED_SO}"
                )
        return found

    def is_beside(self, name: str) -> bool:
        """Scales of inputs, keys and values."""
        return name.endswith(_BESIDE)

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """Each block times its scale, in float32."""
        weight, scale = parts["weight"], parts["scale"]
        numbers = unpack_float4(weight) if weight.dtype == torch.int8 else weight.float()
        if scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
            scale = exponents(scale)
        scale = scale.float()
        spread = _spread(name, tuple(numbers.shape[-2:]), tuple(scale.shape), self._block)
        if spread is None:
            return numbers * scale.reshape(-1, 1, 1) if numbers.dim() == 3 else numbers * scale.reshape(())
        rows, columns, shape = spread
        scale = scale.reshape(*scale.shape[: max(scale.dim() - 2, 0)], *shape)
        own_rows = torch.arange(numbers.shape[-2]) // rows
        own_columns = torch.arange(numbers.shape[-1]) // columns
        return numbers * scale[..., own_rows, :][..., own_columns]


def _is_block(found: object) -> bool:
    return (
        isinstance(found, list | tuple) and len(found) == 2 and all(type(n) is int and n > 0 for n in found)
    )


def _spread(
    name: str, weight: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int, tuple[int, int]] | None:
    """Rows and columns for which a scale is, and the last two lengths of the scales; None: it is for all of them.

    Raises:
        ModelError: the scales do not go with the weight.
    """
    out, width = weight
    if block is None and all(length == 1 for length in scale[-2:]):
        return None
    grid = (scale[0], 1) if len(scale) == 1 else scale[-2:]
    if block is not None and grid == (-(-out // block[0]), -(-width // block[1])):
        return *block, (grid[0], grid[1])
    # Experts may have blocks of another size than the config speaks of.
    if not grid or out % grid[0] or width % grid[1]:
        raise misfit(
            name,
            scale,
            f"a weight of {out}x{width}" + (f" in blocks of {block[0]}x{block[1]}" if block else ""),
        )
    return out // grid[0], width // grid[1], (grid[0], grid[1])
