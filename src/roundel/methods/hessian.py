"""Statistics of a Linear's inputs.

H = 2/N sum_t x_t x_t^T is the Hessian of the layer's squared error. The searched grid needs its diagonal
only, up to a factor: mean x_j^2 per input channel.
"""

import torch


class HessianDiagonal:
    """Accumulates `mean_t x_tj^2` over batches of inputs, in fp32."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Count `inputs [..., in]`."""
        flat = inputs.detach().float().reshape(-1, inputs.shape[-1])
        squares = flat.square().sum(0)
        self.total = squares if self.total is None else self.total.add_(squares)
        self.tokens += flat.shape[0]

    def mean(self) -> torch.Tensor | None:
        """`[in]`, or None if nothing was seen."""
        return None if self.total is None else self.total / self.tokens
