"""Dense: ordinary weights of the model's own type, for anything that runs the original.

The rounding is in the values; nothing becomes smaller. For comparing methods, and for clients that read no
packed format.
"""

from pathlib import Path
from typing import Any

import torch

from roundel.formats.container import Layer
from roundel.formats.reload import check_reload
from roundel.grid import QuantizedWeight


class Dense:
    """Writes dequantized weights."""

    name = "dense"

    def check(self, layers: list[Layer], model_dtype: torch.dtype) -> None:
        """Dense weights carry every setting."""

    def write(self, folder: Path, model: Any, weights: dict[str, QuantizedWeight]) -> None:
        """Save the model, whose Linears hold the dequantized weights already."""
        model.save_pretrained(folder)

    def verify(
        self, folder: Path, model: Any, weights: dict[str, QuantizedWeight], trust_remote_code: bool
    ) -> None:
        """Reopen the folder through transformers."""
        check_reload(folder, model, weights, trust_remote_code)
