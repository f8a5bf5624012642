"""Perplexity, and how far a model's predictions are from the original's, token by token.

    perplexity = exp(mean over windows of the mean next-token loss)
    KL         = mean over tokens of sum_v p(v) (log p(v) - log q(v)),   p the original, q the quantized, nats
    top-1      = share of tokens whose likeliest next token is the same

KL and top-1 separate methods long before perplexity does: they count every changed prediction, while gains
and losses of perplexity cancel.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from roundel.errors import NonFiniteError
from roundel.evaluation.distribution import Difference, Distribution, next_token_loss
from roundel.evaluation.predict import Predictor
from roundel.system.finite import all_finite
from roundel.system.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Measured:
    """Every prediction on N windows of S tokens, fp64 on the CPU, nats; None without a reference.

    Attributes:
        loss: `[N, S - 1]`.
        reference_loss: `[N, S - 1]`.
        kl: `[N, S]`.
        same: `[N, S]`, 1 where the likeliest next token is the same.
    """

    loss: torch.Tensor
    reference_loss: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    same: torch.Tensor | None = None


def measure(
    predictor: Predictor,
    windows: torch.Tensor,
    reference: Iterable[Distribution] | None = None,
    on_window: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Measured:
    """Measure a model on token windows.

    Several ranks share the windows; the result does not depend on how many there are.

    Args:
        predictor: the model.
        windows: `[N, S]` token ids.
        reference: the original's predictions on this rank's windows.
        on_window: called after each window.
        ranks: the processes that measure together.

    Raises:
        ModelError: the vocabularies differ.
        NonFiniteError: the logits hold NaN or infinity.
    """
    count = len(windows)
    own = ranks.own(count)
    losses: list[torch.Tensor] = []
    differences: list[Difference] = []
    with ranks.raise_together():
        wanted = None if reference is None else iter(reference)
        for number, logits in zip(own, predictor.logits(windows[own]), strict=True):
            check_finite(logits, number)
            if wanted is None:
                losses.append(next_token_loss(logits, windows[number]))
            else:
                differences.append(next(wanted).compare(logits, windows[number]))
            on_window()

    length = windows.shape[1]

    def joined(rows: list[torch.Tensor], width: int) -> torch.Tensor:
        found = torch.stack(rows).double() if rows else torch.zeros(0, width, dtype=torch.float64)
        return ranks.rows_in_order(found, own, count)

    if reference is None:
        return Measured(joined(losses, length - 1))
    return Measured(
        joined([difference.found_loss for difference in differences], length - 1),
        joined([difference.loss for difference in differences], length - 1),
        joined([difference.kl for difference in differences], length),
        joined([difference.same for difference in differences], length),
    )


def check_finite(logits: torch.Tensor, number: int) -> None:
    """Raise NonFiniteError where the logits of a window hold NaN or infinity."""
    if not all_finite(logits):
        raise NonFiniteError(f"the logits of window {number} hold NaN or infinity: a whole model is expected")
