"""What measures a model: its logits, window by window, wherever its weights are.

A model in memory computes a window at a time; one that is larger than memory, all windows a block at a time
(blockwise.py). Logits come out one window after the other.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from roundel.errors import ModelError
from roundel.model.linears import rows_of
from roundel.model.source import positions
from roundel.model.text_path import reading_text, text_model


class Predictor(Protocol):
    """A model that can be asked for logits.

    Attributes:
        model: names and shapes; tensors may be absent.
    """

    model: Any

    def logits(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        """`[S, V]`, in the model's own type, of each of `windows [N, S]` in turn."""
        ...


class Whole:
    """A causal language model in memory; `model(input_ids=[1, S]).logits` is `[1, S, V]`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._reader = text_model(model)

    @torch.no_grad()
    def logits(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        """A forward pass for each window."""
        device = next(self.model.parameters()).device
        for window in windows:
            with reading_text(self.model):
                logits: torch.Tensor = self._reader(input_ids=window[None].to(device), use_cache=False).logits
            yield logits[0]


def check_reach(model: Any, ids: torch.Tensor, more: int = 0) -> None:
    """A model that is asked beyond its tables stumbles, or answers with something.

    Args:
        model: a causal language model.
        ids: `[N, S]` token ids.
        more: tokens that are to follow each row.

    Raises:
        ModelError: an id or a position that the model does not know.
    """
    known, highest = rows_of(text_model(model).get_input_embeddings()), int(ids.max())
    if highest >= known:
        raise ModelError(
            f"the tokenizer gives the token id {highest}, and {type(model).__name__} knows 0 to {known - 1}: a model "
            "and a reference with the tokenizer's vocabulary are expected"
        )
    limit, length = positions(model), ids.shape[1] + more
    if limit is not None and length > limit:
        raise ModelError(
            f"{length} tokens in a row exceed the {limit} positions of {type(model).__name__}: {limit} or "
            "less are expected"
        )
