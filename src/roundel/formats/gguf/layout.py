"""Where a model's tensors go in a GGUF file: under which name, with which rows, and in what order.

llama.cpp does not take every tensor as transformers has it: it turns the rows of q and k (its rotary embedding pairs
neighbours), cuts fused projections in pieces, stacks experts in one tensor of three dimensions, adds one to Gemma's
norms. All of it moves whole rows or adds a number, so integers can be moved as well as weights.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Place:
    """Where a tensor, or some rows of it, goes.

    Attributes:
        name: of the tensor in the file, with its suffix.
        rows: `[n]` int64, row k in the file is row `rows[k]` of the model's tensor (as `[out, in]` where it is a
            Linear's, of a tensor that experts share the matrix `expert`); None: all of them, as they come.
        expert: which matrix it is in the file's tensor of three dimensions; None: the tensor has no more than two.
        plus: added to every number; matrices that are quantized have 0.
        through: what else happens to the numbers, a key of `moving.CHANGES`; of matrices that are quantized nothing.
    """

    name: str
    rows: torch.Tensor | None = None
    expert: int | None = None
    plus: float = 0.0
    through: str = ""


Layout = dict[str, list[Place]]
"""The places of every tensor of a model, by its name there; a Linear's weight as `NAME.weight`. One that the file has
no use for has none."""
