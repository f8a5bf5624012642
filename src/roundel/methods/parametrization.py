"""What a learned method supplies per Linear; the trainer supplies the rest."""

from abc import abstractmethod

import torch
from torch import nn

from roundel.grid import QuantizedWeight


class Parametrization(nn.Module):
    """Parameters from which a fake-quantized weight and, at the end, integers are computed.

    The law that ties them: `export().dequantize()` equals `forward()` bit for bit, at every step.
    """

    @abstractmethod
    def forward(self) -> torch.Tensor:
        """The fake-quantized weight `[out, in]` fp32, differentiable in the parameters."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, object]]:
        """The optimizer's parameter groups, each `{"params": [...], "lr": float}`."""

    @abstractmethod
    def export(self) -> QuantizedWeight:
        """The integers of the present parameters."""

    def project(self) -> None:
        """After a step: bring the parameters back into their domain."""
        return
