"""Signed gradient descent, and how step sizes fall.

    p <- p - lr sign(dL/dp)

Without momentum every weight with a gradient moves by the same step, whatever the gradient's size: after K
steps of 1/K (linear decay) an offset can have travelled half a code, no more. That bound is the method's
regularizer (arXiv 2309.05516, section 3.2).
"""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR


class SignSGD(torch.optim.Optimizer):
    """Signed gradient descent without momentum."""

    def __init__(self, params: list[dict[str, object]]) -> None:
        super().__init__(params, defaults={"lr": 1e-3})

    def step_size(self, parameter: torch.Tensor) -> float:
        """How far a parameter of these groups moves in the present step."""
        return next(
            float(group["lr"])
            for group in self.param_groups
            if any(member is parameter for member in group["params"])
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; `closure` is torch's interface and unused."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign_(), alpha=group["lr"])


def make_optimizer(name: str, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """`signsgd` or `adamw` over parameter groups that carry their own `lr`."""
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=0.0)
    return SignSGD(groups)


def make_schedule(optimizer: torch.optim.Optimizer, name: str, iters: int) -> LambdaLR:
    """Multiply every group's step size by a factor that falls from 1 to 0 over `iters` steps."""
    shapes: dict[str, Callable[[int], float]] = {
        "linear": lambda i: 1 - i / iters,
        "cosine": lambda i: 0.5 * (1 + math.cos(math.pi * i / iters)),
        "constant": lambda i: 1.0,
    }
    return LambdaLR(optimizer, shapes[name])
