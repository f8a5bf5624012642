"""Four-bit floating point: one bit of sign, two of exponent, one of mantissa (OCP Microscaling Formats 1.0, E2M1)."""

import torch

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack_float4(packed: torch.Tensor) -> torch.Tensor:
    """Two numbers from each byte, the lower half first: `[..., n]` of any 8-bit type to `[..., 2 n]` float32."""
    table = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=torch.float32)
    codes = packed.contiguous().view(torch.uint8).int()
    return table[torch.stack((codes & 15, codes >> 4), dim=-1)].flatten(-2)


def exponents(scales: torch.Tensor) -> torch.Tensor:
    """Powers of two from their biased exponents (E8M0): `2^(e - 127)`, and NaN for 255."""
    biased = scales.view(torch.uint8).int()
    return torch.ldexp(torch.ones(biased.shape, dtype=torch.float32), biased - 127).masked_fill(
        biased == 255, torch.nan
    )
