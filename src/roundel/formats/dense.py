"""Dense: ordinary weights of the model's own type, for anything that runs the original.

The rounding is in the values; nothing becomes smaller. For comparing methods, and for clients that read no
packed format. The integers lie beside them in a file of their own (`roundel.read_integers`), which clients leave
alone: scales cannot be told from rounded weights afterwards.
"""

from pathlib import Path
from typing import Any

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.activations.scheme import Activations
from roundel.formats.container import Layer
from roundel.formats.integers import INTEGERS, check_integers, read_integers, write_integers
from roundel.formats.reload import check_reload
from roundel.grid import QuantizedWeight


class Dense:
    """Writes dequantized weights."""

    name = "dense"

    def check(self, layers: list[Layer], model_dtype: torch.dtype, activations: Activations) -> None:
        """Dense weights carry every setting; activations are quantized by Roundel alone."""

    def write(
        self,
        folder: Path,
        model: Any,
        weights: dict[str, QuantizedWeight],
        activations: ActivationQuantizer | None = None,
    ) -> None:
        """Save the model, whose Linears hold the dequantized weights already, and the integers."""
        model.save_pretrained(folder)
        write_integers(folder / INTEGERS, model, weights)

    def verify(
        self, folder: Path, model: Any, weights: dict[str, QuantizedWeight], trust_remote_code: bool
    ) -> None:
        """Reopen the folder through transformers, and read the integers back."""
        check_integers(read_integers(folder / INTEGERS).weights, weights)
        check_reload(folder, model, weights, trust_remote_code)
