"""Super-blocks: scales and minima of neighbouring groups as codes with one number in 16 bits for all of them.

    statistic = scale * code

GGUF's K types store them for 8 or 16 groups of a row. There is no zero point: scales are all of one sign, or the codes
are signed.
"""

from dataclasses import dataclass

import torch

from roundel.errors import FormatError


@dataclass(frozen=True)
class SuperBlocks:
    """One statistic of every group.

    Attributes:
        codes: `[out, G]`, uint8 in [0, 2^bits - 1], or int8 in [-2^(bits-1), 2^(bits-1) - 1].
        scale: `[out, S]` fp16; S divides G.
        bits: of one code.

    Raises:
        FormatError: the tensors do not fit together.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    bits: int

    def __post_init__(self) -> None:
        (out, groups), (rows, blocks) = self.codes.shape, self.scale.shape
        if rows != out or blocks == 0 or groups % blocks:
            raise FormatError(
                f"super-blocks are {tuple(self.scale.shape)}; {out}x{groups} groups want as many rows and a divisor "
                "of the groups"
            )

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return self.codes.dtype is torch.int8

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return code_limits(self.bits, self.signed)

    def steps(self) -> torch.Tensor:
        """The value of code 1 in every group, `[out, G]` fp32."""
        return self.scale.float().repeat_interleave(self.codes.shape[1] // self.scale.shape[1], 1)

    def values(self) -> torch.Tensor:
        """The statistics themselves, `[out, G]` fp32."""
        return self.codes.float() * self.steps()

    def nearest(self, values: torch.Tensor, *, zero: bool) -> "SuperBlocks":
        """The same super-blocks with the nearest codes to `values [out, G]`.

        Args:
            values: fp32.
            zero: code 0 is allowed; else what would get it gets its neighbour on the side that it has now.
        """
        steps = self.steps()
        codes = torch.where(steps == 0, 0.0, values / steps).round_().clamp_(*self.limits)
        if not zero:
            side = torch.where(self.codes < 0, -1.0, 1.0)
            codes = torch.where(codes == 0, side, codes)
        return SuperBlocks(codes.to(self.codes.dtype), self.scale, self.bits)

    def to(self, device: torch.device) -> "SuperBlocks":
        """The same on another device."""
        return SuperBlocks(self.codes.to(device), self.scale.to(device), self.bits)


def code_limits(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code of a statistic."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
