"""Heat maps: a figure per Linear, blocks along, Linears down, colours by the logarithm.

Errors and outliers span orders of magnitude, and what is looked for is the cell that does not belong. A
sequential map that the colour-blind read too (cividis); what has no value stays empty, which a model whose blocks
differ needs. Experts of a block share a row: their largest value, since one bad expert is what matters.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from roundel.report.plots.numbers import short
from roundel.report.plots.svg import ACCENT, PAPER, RULE, SOFT, blank, drawing, to_svg

_CELL = 15.0
_WIDE_CELL = 34.0
_SMALL_CELL = 8.0
_LETTER = 5.4
_MOST_ROWS = 40


@dataclass(frozen=True)
class Grid:
    """Values by row (a kind of Linear) and column (a block).

    Attributes:
        rows: names of the kinds of Linears.
        columns: indices of the blocks.
        cells: by (row, column), the value and the full name of the layer that has it.
    """

    rows: list[str]
    columns: list[int]
    cells: dict[tuple[int, int], tuple[float, str]]

    def values(self) -> list[float]:
        """All values that can be drawn on a logarithmic scale."""
        return [value for value, _ in self.cells.values() if _drawable(value)]


def to_grid(values: list[tuple[str, int, str, float]]) -> Grid:
    """Lay values out.

    Args:
        values: (kind, block, full name, value); of several with the same kind and block the largest counts.
    """
    rows: dict[str, int] = {}
    columns = {block: i for i, block in enumerate(sorted({block for _, block, _, _ in values}))}
    cells: dict[tuple[int, int], tuple[float, str]] = {}
    for kind, block, name, value in values:
        place = (rows.setdefault(kind, len(rows)), columns[block])
        if place not in cells or not value <= cells[place][0]:
            cells[place] = (value, name)
    return Grid(list(rows), list(columns), cells)


def common_span(grids: list[Grid], marked: Collection[str] = ()) -> tuple[float, float]:
    """Smallest and largest value of some grids; what is marked is left out, so that one broken layer does not
    make all others look alike."""
    drawn = [cell for grid in grids for cell in grid.cells.values() if _drawable(cell[0])]
    usual = [value for value, name in drawn if name not in marked] or [value for value, _ in drawn]
    return min(usual), max(usual)


def heat_map(
    grid: Grid,
    name: str,
    label: str,
    *,
    marked: Collection[str] = (),
    span: tuple[float, float] | None = None,
) -> str:
    """Draw a grid; empty where it holds nothing that can be drawn.

    Args:
        grid: what to draw.
        name, label: of the figure.
        marked: full names of layers whose cell gets a frame.
        span: smallest and largest value of the colours, where several maps share them.
    """
    values = grid.values()
    if not values:
        return ""
    low, high = span or common_span([grid], marked)
    if high < 1.05 * low:
        low, high = low / 1.05, high * 1.05
    rows, columns = len(grid.rows[:_MOST_ROWS]), len(grid.columns)
    cell = max(_SMALL_CELL, min(_WIDE_CELL, 450 / columns))
    names = [_clipped(row) for row in grid.rows[:_MOST_ROWS]]
    left = max(len(row) for row in names) * _LETTER + 12
    width = max(left + columns * cell + 16, left + 190, 300)
    height = rows * _CELL + 64
    with drawing():
        figure = blank(width, height)
        figure.set_layout_engine("none")
        plane = (left / width, 58 / height, columns * cell / width, rows * _CELL / height)
        axes = figure.add_axes(plane)
        tips = _draw_cells(axes, grid, rows, (low, high), set(marked))
        axes.set_yticks([i + 0.5 for i in range(rows)], names)
        step = _step(columns, cell)
        axes.set_xticks([i + 0.5 for i in range(0, columns, step)], [str(c) for c in grid.columns[::step]])
        more = f" ({len(grid.rows) - rows} more kinds are not drawn)" if len(grid.rows) > rows else ""
        axes.set_xlabel("block" + more, loc="left", labelpad=2)
        axes.tick_params(length=0, pad=3)
        for spine in axes.spines.values():
            spine.set_visible(False)
        _draw_scale(figure, (width, height, left), (low, high), beyond=max(values) > high)
        return to_svg(figure, name, label, {"cells": tips})


def _draw_cells(
    axes: object, grid: Grid, rows: int, span: tuple[float, float], marked: set[str]
) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    colours = colormaps["cividis"]
    boxes, fills, tips, frames = [], [], [], []
    for (row, column), (value, layer) in sorted(grid.cells.items()):
        if row >= rows:
            continue
        boxes.append([(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)])
        fills.append(to_hex(colours(_place(value, span))) if _drawable(value) else RULE)
        tips.append(f"{layer}: {short(value)}")
        if layer in marked:
            frames.append((column, row))
    cells = PolyCollection(boxes, facecolors=fills, edgecolors=PAPER, linewidths=0.5)
    cells.set_gid("cells")
    axes.add_collection(cells)  # type: ignore[attr-defined]
    for column, row in frames:
        frame = Rectangle(
            (column, row), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2, zorder=5, clip_on=False
        )
        frame.set_gid(f"standout-{row}-{column}")
        axes.add_patch(frame)  # type: ignore[attr-defined]
    axes.set_xlim(0, len(grid.columns))  # type: ignore[attr-defined]
    axes.set_ylim(rows, 0)  # type: ignore[attr-defined]
    return tips


def _draw_scale(
    figure: object, place: tuple[float, float, float], span: tuple[float, float], *, beyond: bool
) -> None:
    """The colours as a bar below, with the values at its ends and in its middle."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    width, height, left = place
    bar = figure.add_axes((left / width, 21 / height, 150 / width, 7 / height))  # type: ignore[attr-defined]
    steps = 30
    shades = colormaps["cividis"](np.linspace(0, 1, steps))
    # Each reaches below the next, so that no line shows between them. One collection: patches are drawn one by one.
    boxes = [[(step, 0), (step + 1.5, 0), (step + 1.5, 1), (step, 1)] for step in range(steps)]
    bar.add_collection(PolyCollection(boxes, facecolors=shades, linewidths=0))
    bar.set_xlim(0, steps)
    bar.set_ylim(0, 1)
    middle = math.sqrt(span[0] * span[1])
    words = [short(value, 2) for value in (span[0], middle, span[1])]
    bar.set_xticks([0, steps / 2, steps], [*words[:2], ("≥ " if beyond else "") + words[2]])
    bar.set_yticks([])
    bar.tick_params(length=0, pad=3, labelcolor=SOFT, labelsize=8.5)
    for spine in bar.spines.values():
        spine.set_visible(False)


def _place(value: float, span: tuple[float, float]) -> float:
    low, high = span
    share = math.log(value / low) / math.log(high / low)
    return min(max(share, 0.0), 1.0)


def _drawable(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _step(columns: int, cell: float) -> int:
    """Every so manyth block is numbered: numbers do not touch."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, columns) if step * cell >= 14 or step >= columns)


def _clipped(name: str) -> str:
    return name if len(name) <= 30 else "…" + name[-29:]
