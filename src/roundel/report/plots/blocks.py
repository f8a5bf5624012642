"""What tuning did for each block, and what each block cost."""

import math
from typing import Any

from roundel.report.plots.numbers import short
from roundel.report.plots.svg import ACCENT, PAPER, RULE, SECOND, SOFT, blank, drawing, to_svg


def loss_plot(blocks: list[dict[str, Any]], name: str) -> str:
    """Relative error of each block's output: hollow before tuning, full after it; empty without losses.

    A logarithmic axis: equal gains are equal lengths wherever they begin.
    """
    losses = [(i, block["loss_start"], block["loss_end"]) for i, block in enumerate(blocks)]
    known = [(i, start, end) for i, start, end in losses if _positive(end)]
    if not known:
        return ""
    before = any(_positive(start) for _, start, _ in known)
    with drawing():
        figure = blank(360, 230)
        axes = figure.add_subplot()
        for i, start, end in known:
            if _positive(start):
                axes.plot([i, i], [start, end], color=RULE, linewidth=1.6, solid_capstyle="butt", zorder=2)
        marker = 5.0 if len(known) <= 40 else 3.5
        if before:
            places = [(i, start) for i, start, _ in known if _positive(start)]
            (shown,) = axes.plot(
                *zip(*places, strict=True),
                linestyle="none", marker="o", markersize=marker, markerfacecolor=PAPER,
                markeredgecolor=SOFT, markeredgewidth=1.1, zorder=3, label="before tuning",
            )  # fmt: skip
            shown.set_gid("before")
        (shown,) = axes.plot(
            [i for i, _, _ in known],
            [end for _, _, end in known],
            linestyle="none", marker="o", markersize=marker, color=ACCENT, zorder=4,
            label="after tuning" if before else "after rounding",
        )  # fmt: skip
        shown.set_gid("after")
        axes.set_yscale("log")
        values = [v for _, start, end in known for v in (start, end) if _positive(v)]
        log_ticks(axes, min(values), max(values))
        axes.grid(axis="y")
        axes.set_xlabel("block")
        axes.set_title("error of the block's output, relative", color=SOFT)
        block_ticks(axes, len(blocks))
        axes.legend(loc="best", fontsize=8.5, labelcolor=SOFT)
        words = "after tuning" if not before else "before and after tuning"
        return to_svg(figure, name, f"Relative error of each block's output {words}, logarithmic")


def cost_plot(values: list[float | None], name: str, title: str, label: str, *, second: bool = False) -> str:
    """Bars per block: time or memory. Empty where nothing is known."""
    known = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    if not known:
        return ""
    with drawing():
        figure = blank(360, 180)
        axes = figure.add_subplot()
        bars = axes.bar(
            [i for i, _ in known], [v for _, v in known], width=0.72, color=SECOND if second else ACCENT
        )
        for i, bar in enumerate(bars):
            bar.set_gid(f"bar-{i}")
        axes.grid(axis="y")
        axes.set_xlabel("block")
        axes.set_title(title, color=SOFT)
        axes.set_ylim(bottom=0)
        axes.tick_params(length=0)
        block_ticks(axes, len(values))
        return to_svg(figure, name, label)


def block_ticks(axes: Any, blocks: int) -> None:
    """Whole numbers along the blocks, about ten of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if blocks / step <= 12 or step == 100)
    axes.set_xticks(range(0, blocks, step))
    axes.set_xlim(-0.7, max(blocks - 0.3, 0.7))
    axes.tick_params(length=0)


def log_ticks(axes: Any, low: float, high: float, *, along: str = "y") -> None:
    """Three to six round values on a logarithmic axis, also where it spans less than a decade."""
    from matplotlib.ticker import MaxNLocator

    low, high = low / 1.15, high * 1.15
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 5:
        step = math.ceil((last - first) / 5)
        ticks = [10.0**power for power in range(first, last + 1, step)]
    else:
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
            ticks = [d * 10.0**power for power in range(first, last + 1) for d in digits]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if len(ticks) >= 3:
                break
        else:  # within a factor of two a logarithmic axis is nearly a plain one
            ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]
    ticks = [tick for tick in ticks if low <= tick <= high][:12]
    axis, limit = (axes.yaxis, axes.set_ylim) if along == "y" else (axes.xaxis, axes.set_xlim)
    limit(low, high)
    axis.set_ticks(ticks, [_exact(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def _exact(tick: float) -> str:
    """As few digits as say where the tick is, and not fewer."""
    digits = next((n for n in range(1, 6) if math.isclose(float(f"{tick:.{n - 1}e}"), tick, rel_tol=1e-9)), 6)
    return short(tick, digits)


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
