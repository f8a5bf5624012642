"""Tuning curves: how the loss of each block fell, one line per block, coloured by depth.

Blocks differ in loss by orders of magnitude, so each is divided by its own first steps. The loss of a step is
that of one minibatch; stretches of steps are averaged, to at most a hundred points, which also keeps a run of
80 blocks and 5000 iterations small.
"""

import math

from roundel.report.plots.blocks import log_ticks
from roundel.report.plots.svg import SOFT, blank, drawing, to_svg

_POINTS = 100


def thinned(curve: list[float]) -> tuple[list[float], list[float]]:
    """Means over stretches of equal length: (middle step of each, mean loss)."""
    length = max(1, math.ceil(len(curve) / _POINTS))
    pieces = [(i, curve[i : i + length]) for i in range(0, len(curve), length)]
    return (
        [i + (len(piece) - 1) / 2 for i, piece in pieces],
        [sum(piece) / len(piece) for _, piece in pieces],
    )


def tuning_plot(curves: list[list[float]], name: str) -> str:
    """Draw the curves of all blocks (an empty one for a block that was not tuned); empty without any."""
    lines = []
    for block, curve in enumerate(curves):
        steps, losses = thinned(curve)
        if len(losses) < 2 or not (math.isfinite(losses[0]) and losses[0] > 0):
            continue
        points = [
            (s, x / losses[0]) for s, x in zip(steps, losses, strict=True) if math.isfinite(x) and x > 0
        ]
        lines.append((block, [s for s, _ in points], [x for _, x in points]))
    if not lines:
        return ""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    colours = colormaps["viridis"]
    last = max(len(curves) - 1, 1)
    with drawing():
        figure = blank(360, 230)
        axes = figure.add_subplot()
        for block, steps, losses in lines:
            (line,) = axes.plot(
                steps, losses,
                color=colours(0.12 + 0.76 * block / last), linewidth=1.3 if len(lines) <= 12 else 0.9, alpha=0.9,
            )  # fmt: skip
            line.set_gid(f"curve-{block}")
        axes.set_yscale("log")
        values = [x for _, _, losses in lines for x in losses]
        log_ticks(axes, min(values), max(values))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.set_xlim(0, max(steps[-1] for _, steps, _ in lines))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("iteration")
        axes.set_title("training loss, over that of the first steps", color=SOFT)
        _key(axes, len(curves), colours)
        return to_svg(
            figure, name, "Training loss of each block over the iterations, relative to its first steps"
        )


def _key(axes: object, blocks: int, colours: object) -> None:
    """Which colour is which block: the line itself for few, the two ends for many."""
    from matplotlib.lines import Line2D

    shown = range(blocks) if blocks <= 4 else sorted({0, blocks // 3, 2 * blocks // 3, blocks - 1})
    last = max(blocks - 1, 1)
    handles = [
        Line2D([], [], color=colours(0.12 + 0.76 * b / last), linewidth=2.5, label=f"block {b}")  # type: ignore[operator]
        for b in shown
    ]
    axes.legend(handles=handles, loc="best", fontsize=8.5, labelcolor=SOFT, handlelength=1.2)  # type: ignore[attr-defined]
