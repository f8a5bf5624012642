"""Which of several models is closer to the original, and which differences are noise.

Two models are compared window by window on the same windows, so that what makes a window hard cancels. A difference
whose 95 % interval holds zero is called noise: with these windows nobody can tell the two apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Any

from roundel.evaluation.interval import Interval
from roundel.evaluation.measure import Measured
from roundel.evaluation.quality import resampled
from roundel.evaluation.tasks.results import without_parts

_CHANCE = 0.05


@dataclass(frozen=True)
class Pair:
    """Two models on a text.

    Attributes:
        a, b: their names.
        text: on which.
        figure: `kl` or `loss`, nats per token.
        difference: a minus b: below zero, a is better.
        noise: the interval holds zero, or there is none.
    """

    a: str
    b: str
    text: str
    figure: str
    difference: Interval
    noise: bool


def compare_pairs(text: str, measured: Mapping[str, Measured]) -> list[Pair]:
    """All pairs of models on a text, by names."""
    found = []
    for a, b in combinations(measured, 2):
        one, two = measured[a], measured[b]
        differences = {"loss": one.loss.mean(1) - two.loss.mean(1)}
        if one.kl is not None and two.kl is not None:
            differences["kl"] = one.kl.mean(1) - two.kl.mean(1)
        for figure, values in differences.items():
            interval = resampled(values)
            found.append(Pair(a, b, text, figure, interval, _holds_zero(interval)))
    return found


def verdict(names: Sequence[str], kl: Mapping[str, float], pairs: Sequence[Pair], text: str) -> list[str]:
    """What the figures on a text say, in plain sentences.

    Args:
        names: of the models.
        kl: to the original, nats per token, by name.
        pairs: all of them, on this text.
        text: what it is called.
    """
    ranked = sorted(names, key=lambda name: kl[name])
    found = [f"On {text}, {ranked[0]} is closest to the original: KL {kl[ranked[0]]:.3g} nats per token."]
    known = {frozenset((pair.a, pair.b)): pair for pair in pairs if pair.figure == "kl"}
    for better, worse in pairwise(ranked):
        pair = known[frozenset((better, worse))]
        away = abs(pair.difference.value)
        if pair.noise:
            found.append(
                f"{better} and {worse} cannot be told apart by these windows: a difference of {away:.2g} is "
                f"noise{_describe(pair)}."
            )
        else:
            found.append(f"{better} is closer than {worse}, by {away:.2g}{_describe(pair)}.")
    return found


def _describe(pair: Pair) -> str:
    if pair.difference.bounds is None:
        return ", as a single window tells nothing of another"
    low, high = pair.difference.bounds
    ends = sorted((abs(low), abs(high)))
    if pair.noise:
        return f" (95 % between {low:+.2g} and {high:+.2g})"
    return f" (95 % between {ends[0]:.2g} and {ends[1]:.2g})"


def _holds_zero(interval: Interval) -> bool:
    return interval.bounds is None or interval.bounds[0] <= 0 <= interval.bounds[1]


def answers_verdict(found: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """What the changed answers of all models say: a sentence for each real difference, and one for a model's noise.

    Of the answers that changed, as many are won as lost where nothing but noise is at work: the exact sign test tells
    (McNemar's test for small numbers). One of twenty such tests errs, so the chances are corrected for how many there
    are, by Holm's method. Parts of a group are in the group's sentence.

    Args:
        found: of each model the plain results beside the original's (tasks/results.py).
    """
    counted = {
        name: [
            (task["task"], task["flips"]["lost"], task["flips"]["won"])
            for task in without_parts(tasks)
            if task["flips"] is not None
        ]
        for name, tasks in found.items()
    }
    alone = [sign_test(lost, won) for changes in counted.values() for _, lost, won in changes]
    of_all = f", corrected for {len(alone)} comparisons" if len(alone) > 1 else ""
    chances = iter(holm(alone))
    said = []
    for name, changes in counted.items():
        noise = []
        for task, lost, won in changes:
            chance = next(chances)
            if chance > _CHANCE:
                noise.append(f"{task} (lost {lost}, won {won})")
            else:
                said.append(
                    f"On {task}, {name} loses {lost} of the original's right answers and wins {won}: "
                    f"a real difference (p = {chance:.2g}{of_all})."
                )
        if noise:
            said.append(f"{name}'s changed answers are noise on {', '.join(noise)}.")
    return said


def holm(chances: Sequence[float]) -> list[float]:
    """Chances of several tests, corrected so that the chance of one false alarm among all stays what is said.

    S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    corrected = [0.0] * len(chances)
    least = 0.0
    for place, index in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        least = max(least, min(1.0, (len(chances) - place) * chances[index]))
        corrected[index] = least
    return corrected


def sign_test(lost: int, won: int) -> float:
    """How likely a split as uneven as this, or more so, is by chance."""
    count = lost + won
    tail = sum(comb(count, k) for k in range(min(lost, won) + 1))
    return float(min(1.0, 2 * tail / 2**count))
