"""Figures of a text, with intervals.

Windows of a text are a sample of what a model may be asked. How far a figure would move with another sample is
estimated by drawing windows with replacement, 2000 times, and taking the middle 95 % of the figure (the percentile
bootstrap: Efron 1979). Two models are compared on the same windows: how hard a window is cancels, and differences
come out that are far smaller than either interval.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from roundel.evaluation.interval import Interval
from roundel.evaluation.measure import Measured

DRAWS, SEED = 2000, 0
_TAIL = 0.025


@dataclass(frozen=True)
class Divergence:
    """KL(original || model), nats per token.

    Attributes:
        mean: over all tokens.
        median, p99, max: of single tokens.
    """

    mean: Interval
    median: float
    p99: float
    max: float


@dataclass(frozen=True)
class TextQuality:
    """What was measured on a text. All but perplexity is None without a reference.

    Attributes:
        text: its name or path.
        convention: how windows came about.
        windows: how many.
        tokens: in all of them.
        perplexity: of the model.
        reference_perplexity: of the original.
        perplexity_ratio: model over original, window by window.
        kl: how far the predictions are from the original's.
        top1: share of tokens whose likeliest next token is the original's, in [0, 1].
    """

    text: str
    convention: str
    windows: int
    tokens: int
    perplexity: Interval
    reference_perplexity: Interval | None = None
    perplexity_ratio: Interval | None = None
    kl: Divergence | None = None
    top1: Interval | None = None


def summarize(text: str, convention: str, measured: Measured) -> TextQuality:
    """Figures from single predictions."""
    loss = measured.loss.mean(1)
    windows, length = len(loss), measured.loss.shape[1] + 1
    perplexity = resampled(loss, math.exp)
    if measured.reference_loss is None:
        return TextQuality(text, convention, windows, windows * length, perplexity)
    assert measured.kl is not None
    assert measured.same is not None
    reference = measured.reference_loss.mean(1)
    kl = measured.kl.flatten().sort().values
    return TextQuality(
        text,
        convention,
        windows,
        windows * length,
        perplexity,
        resampled(reference, math.exp),
        resampled(loss - reference, math.exp),
        Divergence(
            resampled(measured.kl.mean(1)),
            float(kl[len(kl) // 2]),
            float(kl[min(len(kl) - 1, math.ceil(0.99 * len(kl)))]),
            float(kl[-1]),
        ),
        resampled(measured.same.mean(1)),
    )


def resampled(values: torch.Tensor, turned: Callable[[float], float] = float) -> Interval:
    """The mean of `values [N]`, one of each window, and its interval; both `turned` into the figure that is shown.

    Args:
        values: fp64.
        turned: a rising function.
    """
    value = turned(float(values.mean()))
    if len(values) < 2:
        return Interval(value, None, None)
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(len(values), (DRAWS, len(values)), generator=generator)
    means = values[drawn].mean(1).sort().values
    low, high = (float(means[round(share * (DRAWS - 1))]) for share in (_TAIL, 1 - _TAIL))
    return Interval(value, turned(low), turned(high))


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        model: its name.
        activations: what of its activations is quantized; empty: nothing.
        reference: the original's name, if there was one.
        texts: figures of each text.
        tasks: figures of each task, as plain data (tasks/harness.py).
    """

    model: str
    activations: str
    reference: str | None
    texts: list[TextQuality]
    tasks: list[dict[str, Any]]

    def plain(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)
