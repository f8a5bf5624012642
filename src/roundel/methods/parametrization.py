"""What a learned method supplies per Linear; the trainer supplies the rest."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from roundel.grid.affine import QParams, nearest_codes, zero_in_codes
from roundel.grid.groups import from_groups, to_groups
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.methods.fake_quantize import divided_scale, fake_quantize


class Parametrization(nn.Module):
    """Parameters from which a fake-quantized weight and, at the end, integers are computed.

    The laws that tie them: `export().dequantize()` equals `forward()` bit for bit, at every step; at step 0 both
    are the start rounded to nearest.

    Args:
        weight: `[out, in]` fp32, finite; what step 0 rounds.
        start: the grid at step 0.
        scheme: which grid.
        outliers: weights beside the grid, which stay.

    A method sets `offset`, V as `[out, G, g]`, where it has one.

    A training step is `begin_step`, the block's own passes with that weight, and `end_step` with its gradient.
    """

    offset: nn.Parameter | None
    _edge: GradientEdge | None = None

    def __init__(
        self, weight: torch.Tensor, start: QParams, scheme: Scheme, outliers: Outliers | None = None
    ) -> None:
        super().__init__()
        self.register_parameter("offset", None)
        self.in_features = weight.shape[1]
        self.groups = to_groups(weight, scheme).contiguous()  # [out, G, g]
        self.start, self.scheme, self.outliers = start, scheme, outliers

    @abstractmethod
    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of the present parameters, as stored, `[out, G, 1]` each."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, object]]:
        """The optimizer's parameter groups, each `{"params": [...], "lr": float}`."""

    @property
    def trained(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def log_divisor(self) -> torch.Tensor | None:
        """log D, by which weights are divided before rounding, `[out, G, g]`; None = not at all."""
        return None

    def project(self) -> None:
        """After a step: bring the parameters back into their domain."""
        return

    def forward(self) -> torch.Tensor:
        """The fake-quantized weight `[out, in]` fp32, differentiable in the parameters."""
        scale, zero = self.grid()
        groups = fake_quantize(self.groups, scale, zero, self.scheme, self.offset, self.log_divisor())
        return self.with_outliers(from_groups(groups, self.in_features))

    def with_outliers(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight `[out, in]` fp32 with what stays beside the grid."""
        return weight if self.outliers is None else weight + self.outliers.add_to(torch.zeros_like(weight))

    def begin_step(self, dtype: torch.dtype) -> torch.Tensor:
        """The fake-quantized weight `[out, in]`, rounded to `dtype`; its graph is kept here until `end_step`."""
        # Not the weight itself: an expert's is copied into its stack, and need not be there twice.
        weight = self()
        self._edge = get_gradient_edge(weight)
        return weight.detach().to(dtype)

    def end_step(self, gradient: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Leave gradients in the parameters, from that of the weight `[out, in]`.

        A parameter that has taken its step of `optimizer` here has none: one pass may do both.
        """
        assert self._edge is not None
        edge, self._edge = self._edge, None
        torch.autograd.backward([edge], [gradient.float()])

    @torch.no_grad()
    def export(self) -> QuantizedWeight:
        """The integers of the present parameters."""
        scale, zero = self.grid()
        log_divisor = self.log_divisor()
        step = scale if log_divisor is None else divided_scale(scale, log_divisor)
        code_zero = zero_in_codes(scale, zero, self.scheme)
        codes = nearest_codes(self.groups, step, code_zero, self.scheme, self.offset)
        grid = self.start.nearest(scale, zero, self.scheme)
        return replace(grid.with_codes(codes, self.scheme, self.in_features), outliers=self.outliers)
