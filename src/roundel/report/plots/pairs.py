"""Paired differences: each model against each other on the same windows.

The interval of a difference is much shorter than the difference of two intervals, since windows that are hard for
one model are hard for all. What crosses the line of zero is hollow: not to be told from noise.
"""

import math
from typing import Any

from roundel.evaluation.interval import Interval
from roundel.report.plots.numbers import short
from roundel.report.plots.svg import ACCENT, PAPER, RULE, SOFT, blank, drawing, to_svg

_ROW = 17.0
_LETTER = 5.5


def pairs_plot(pairs: list[dict[str, Any]], name: str, title: str) -> str:
    """Draw differences of one figure on one text, a row each; empty without any."""
    if not pairs:
        return ""
    differences = [Interval(**pair["difference"]) for pair in pairs]
    words = [f"{pair['a']} − {pair['b']}" for pair in pairs]  # noqa: RUF001
    left = max(map(len, words)) * _LETTER + 14
    width, height = max(left + 210, 360), len(pairs) * _ROW + 76
    with drawing():
        figure = blank(width, height)
        figure.set_layout_engine("none")
        plane = (left / width, 46 / height, (width - left - 14) / width, (height - 72) / height)
        axes = figure.add_axes(plane)
        axes.axvline(0, color=SOFT, linewidth=1.0, zorder=1)
        for i, pair in enumerate(pairs):
            found = differences[i]
            colour = SOFT if pair["noise"] else ACCENT
            axes.plot(found.reach, [i, i], color=colour, linewidth=1.6, zorder=2)
            (dot,) = axes.plot(
                [found.value],
                [i],
                marker="o",
                markersize=6,
                color=colour,
                markerfacecolor=PAPER if pair["noise"] else colour,
                zorder=3,
            )
            dot.set_gid(f"{'noise' if pair['noise'] else 'differs'}-{i}")
        axes.set_yticks(range(len(pairs)), words)
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.tick_params(length=0)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        axes.set_title(title, color=SOFT)
        _spread(axes, differences)
        between = ", with 95 % intervals" if any(found.bounds for found in differences) else ""
        label = f"{title}{between}: " + "; ".join(
            f"{word} {'noise' if pair['noise'] else 'differs'}"
            for word, pair in zip(words, pairs, strict=True)
        )
        return to_svg(figure, name, label)


def _spread(axes: Any, found: list[Interval]) -> None:
    """A plain axis, or one that is plain near zero and logarithmic beyond it.

    One bad model among good ones would press all other differences onto the line of zero.
    """
    ends = [f.reach for f in found]
    reach = max(max(abs(low), abs(high)) for low, high in ends) or 1.0
    # Where there are no intervals, the differences themselves say how fine the axis has to be.
    widths = [(high - low) or abs(low) for low, high in ends]
    narrow = min(max(width, 1e-4 * reach) for width in widths)
    low, high = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
    if reach <= 20 * narrow:
        room = 0.06 * (high - low) or 1.0
        axes.set_xlim(low - room, high + room)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: short(value, 2) if value else "0")
        return
    axes.set_xscale("asinh", linear_width=narrow)
    axes.set_xlabel("plain near zero, logarithmic further out", fontsize=8.5)
    axes.set_xlim(1.5 * min(low, -narrow / 2), 1.5 * max(high, narrow / 2))
    powers = range(math.ceil(math.log10(narrow)), math.floor(math.log10(1.5 * reach)) + 1)
    ticks = [sign * 10.0**power for power in powers for sign in (-1, 1)] + [0.0]
    ticks = sorted(tick for tick in ticks if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1])
    axes.set_xticks(_apart(ticks, axes), minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: short(value, 1) if value else "0")


def _apart(ticks: list[float], axes: Any) -> list[float]:
    """Ticks whose words do not touch; zero is always among them."""
    place = {tick: float(axes.transData.transform((tick, 0))[0]) for tick in ticks}
    kept = [0.0]
    for tick in sorted(ticks, key=lambda tick: -abs(tick)):
        if all(abs(place[tick] - place[other]) >= 38 for other in kept):
            kept.append(tick)
    return sorted(kept)
