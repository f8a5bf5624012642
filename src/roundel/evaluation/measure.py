"""Perplexity, and how far a model's predictions are from the original's.

    perplexity = exp(mean over windows of the mean next-token loss)
    KL         = mean over tokens of sum_v p(v) (log p(v) - log q(v)),   p the original, q the quantized, nats
    top-1      = share of tokens whose likeliest next token is the same

KL and top-1 separate methods long before perplexity does: they count every changed prediction, while gains
and losses of perplexity cancel.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from roundel.errors import ModelError, NonFiniteError
from roundel.model.source import positions
from roundel.ranks import ALONE, Ranks

# Rows of logits handled at once: bounds the fp32 copies at large vocabularies.
_LOGIT_ROWS = 512


@dataclass(frozen=True)
class Quality:
    """What was measured. KL in nats per token; agreement in [0, 1]; None without a reference."""

    perplexity: float
    tokens: int
    reference_perplexity: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None


@torch.no_grad()
def measure(
    model: Any,
    windows: torch.Tensor,
    reference: Any | None = None,
    on_window: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Quality:
    """Measure a model on token windows.

    Several ranks share the windows. Figures of single windows are summed in the order of the windows, so the result
    does not depend on how many there are.

    Args:
        model: a causal language model; `model(input_ids=[1, S]).logits` is `[1, S, V]`.
        windows: `[N, S]` token ids.
        reference: the original, for KL and top-1 agreement.
        on_window: called after each window.
        ranks: the processes that measure together.

    Raises:
        ModelError: the vocabularies differ, or a model knows fewer tokens or positions than the windows have.
        NonFiniteError: the logits hold NaN or infinity.
    """
    count = len(windows)
    own = ranks.own(count)
    found: list[_Figures] = []
    with ranks.agreed():
        for asked in (model, reference):
            if asked is not None:
                check_reach(asked, windows)
        for number in own:
            found.append(_of_window(model, windows[number], number, reference))
            on_window()

    def mean(values: Iterable[float]) -> float:
        return sum(ranks.in_order(list(values), own, count)) / count

    perplexity = math.exp(mean(figures.loss for figures in found))
    if reference is None:
        return Quality(perplexity, windows.numel())
    return Quality(
        perplexity,
        windows.numel(),
        reference_perplexity=math.exp(mean(figures.reference_loss for figures in found)),
        kl=mean(figures.kl for figures in found),
        top1_agreement=mean(figures.same for figures in found),
    )


@dataclass(frozen=True)
class _Figures:
    """Means over a window."""

    loss: float
    reference_loss: float = 0.0
    kl: float = 0.0
    same: float = 0.0


def _of_window(model: Any, window: torch.Tensor, number: int, reference: Any | None) -> _Figures:
    logits = _logits(model, window, number)
    loss = _next_token_loss(logits, window)
    if reference is None:
        return _Figures(loss)
    wanted = _logits(reference, window, number)
    if wanted.shape != logits.shape:
        raise ModelError(
            f"the model predicts {logits.shape[-1]} tokens, the reference {wanted.shape[-1]}: "
            "a reference with the same vocabulary is wanted"
        )
    return _Figures(loss, _next_token_loss(wanted, window), *_compare(wanted, logits))


def check_reach(model: Any, ids: torch.Tensor, more: int = 0) -> None:
    """A model that is asked beyond its tables stumbles, or answers with something.

    Args:
        model: a causal language model.
        ids: `[N, S]` token ids.
        more: tokens that are to follow each row.

    Raises:
        ModelError: an id or a position that the model does not know.
    """
    known, highest = model.get_input_embeddings().weight.shape[0], int(ids.max())
    if highest >= known:
        raise ModelError(
            f"the tokenizer gives the token id {highest}, and {type(model).__name__} knows 0 to {known - 1}: a model "
            "and a reference with the tokenizer's vocabulary are wanted"
        )
    limit, length = positions(model), ids.shape[1] + more
    if limit is not None and length > limit:
        raise ModelError(
            f"{length} tokens in a row exceed the {limit} positions of {type(model).__name__}: {limit} or "
            "less are wanted"
        )


def _logits(model: Any, window: torch.Tensor, number: int) -> torch.Tensor:
    device = next(model.parameters()).device
    logits: torch.Tensor = model(input_ids=window[None].to(device), use_cache=False).logits[0]
    if not torch.isfinite(logits).all():
        raise NonFiniteError(f"the logits of window {number} hold NaN or infinity: a whole model is wanted")
    return logits


def _next_token_loss(logits: torch.Tensor, window: torch.Tensor) -> float:
    """Mean loss of a window's S - 1 predictions."""
    target = window[1:].to(logits.device)
    total = 0.0
    for rows, ids in zip(logits[:-1].split(_LOGIT_ROWS), target.split(_LOGIT_ROWS), strict=True):
        total += float(F.cross_entropy(rows.float(), ids, reduction="sum"))
    return total / len(target)


def _compare(wanted: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Mean KL and top-1 agreement over all S positions of a window."""
    kl = same = 0.0
    for p, q in zip(wanted.split(_LOGIT_ROWS), found.to(wanted.device).split(_LOGIT_ROWS), strict=True):
        log_p, log_q = F.log_softmax(p.float(), -1), F.log_softmax(q.float(), -1)
        kl += float((log_p.exp() * (log_p - log_q)).sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    return kl / len(wanted), same / len(wanted)
