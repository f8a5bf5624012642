"""Rounding activations to their grid.

    x^ = s (clamp(round(x / s + z), -m, m - 1) - z),   m = 2^(bits-1), n = 2^bits - 1

    asymmetric   s = (hi - lo) / n, z = round(-m - lo / s), with lo = min(x, 0) and hi = max(x, 0)
    symmetric    s = 2 max|x| / n, z = 0

These are the rules of compressed-tensors, halves included, so that its clients compute the very same. lo and hi are
those of each vector along the last axis (a token; a token and head of the KV cache), or fixed numbers (static).
Computed in float32, returned in the type of x. In training rounding passes gradients straight through; beyond a fixed
range there are none. The range of a vector counts as a constant.

Whoever multiplies by integers gets the codes (`codes_of`): what is rounded here is computed from the same ones.
"""

from dataclasses import dataclass

import torch

from roundel.activations.scheme import ActivationScheme, StaticGrid


def grid_of_range(
    lo: torch.Tensor, hi: torch.Tensor, scheme: ActivationScheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point, both fp32, that span `lo <= 0` to `hi >= 0`."""
    if scheme.sym:
        scale = torch.maximum(-lo, hi) / (scheme.levels / 2)
        zero = torch.zeros_like(scale)
    else:
        scale = (hi - lo) / scheme.levels
        zero = (-scheme.midpoint - lo / scale).round_()
    # Nothing but zeros: any scale keeps them.
    empty = scale == 0
    return scale.masked_fill(empty, 1.0), zero.masked_fill(empty, 0.0)


@dataclass(frozen=True)
class Codes:
    """Activations as integers: `scale (code - zero)`.

    Attributes:
        codes: `[..., D]` int8.
        scale, zero: `[..., 1]` float32; the scale of a vector that is not finite is NaN.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The rounded activations."""
        return self.codes.float().sub_(self.zero).mul_(self.scale).to(dtype)


def codes_of(x: torch.Tensor, scheme: ActivationScheme, grid: StaticGrid | None = None) -> Codes:
    """Activations `[..., D]` as integers: of each vector on its own grid, or on a fixed one.

    Raises:
        AssertionError: the scheme is static, and there is no grid.
    """
    if grid is None:
        assert not scheme.static
        codes, scale, zero = _vector_codes(x, scheme)
        broken = ~scale.isfinite()
    else:
        codes = _static_codes(x, grid, scheme)
        broken = x.isnan().any(-1, keepdim=True)
        scale = torch.full(broken.shape, grid.scale, dtype=torch.float32, device=x.device)
        zero = torch.full_like(scale, grid.zero)
    return Codes(codes.nan_to_num_(0).to(torch.int8), scale.masked_fill(broken, torch.nan), zero)


def _vector_codes(
    x: torch.Tensor, scheme: ActivationScheme
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes `[..., D]`, scale and zero point `[..., 1]`, all float32."""
    values = x.float()
    lo, hi = values.aminmax(dim=-1, keepdim=True)
    scale, zero = grid_of_range(lo.clamp_(max=0), hi.clamp_(min=0), scheme)
    codes = (values / scale).add_(zero).round_().clamp_(-scheme.midpoint, scheme.midpoint - 1)
    return codes, scale, zero


def _static_codes(x: torch.Tensor, grid: StaticGrid, scheme: ActivationScheme) -> torch.Tensor:
    return _unclamped(x, grid).clamp_(-scheme.midpoint, scheme.midpoint - 1)


def _unclamped(x: torch.Tensor, grid: StaticGrid) -> torch.Tensor:
    return (x.float() / grid.scale).add_(grid.zero).round_()


def quantize_vectors(x: torch.Tensor, scheme: ActivationScheme) -> torch.Tensor:
    """Round each vector along the last axis on its own grid, `[..., D]`."""
    rounded: torch.Tensor = _RoundVectors.apply(x, scheme)
    return rounded


def quantize_static(x: torch.Tensor, grid: StaticGrid, scheme: ActivationScheme) -> torch.Tensor:
    """Round a tensor of any shape on one fixed grid."""
    rounded: torch.Tensor = _RoundStatic.apply(x, grid, scheme)
    return rounded


class _RoundVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, scheme: ActivationScheme) -> torch.Tensor:  # type: ignore[no-untyped-def,override]
        codes, scale, zero = _vector_codes(x, scheme)
        return codes.sub_(zero).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def,override]
        return grad, None


class _RoundStatic(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, grid: StaticGrid, scheme: ActivationScheme) -> torch.Tensor:  # type: ignore[no-untyped-def,override]
        unclamped = _unclamped(x, grid)
        codes = unclamped.clamp(-scheme.midpoint, scheme.midpoint - 1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(codes == unclamped)
        return codes.sub_(grid.zero).mul_(grid.scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def,override]
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None
