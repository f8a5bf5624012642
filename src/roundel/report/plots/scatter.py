"""Quality against size: the picture in which quantizers are compared.

Divergence on a logarithmic axis (methods differ by factors), size on a plain one, intervals as bars. Names stand at
their points, where there is room: places around each are tried from near to far, and one that is far gets a
line to its point. A legend would send the eye back and forth.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from roundel.evaluation.interval import Interval
from roundel.report.plots.blocks import log_ticks
from roundel.report.plots.svg import ACCENT, INK, SOFT, blank, drawing, to_svg

_SIZE = 9.0
_HEIGHT = 12.0
_RADII = (8.0, 14.0, 22.0, 32.0, 46.0, 64.0)
_DIRECTIONS = 16


@dataclass(frozen=True)
class Point:
    """A model: how large it is, and how far from the original, with its interval if there is one."""

    name: str
    x: float
    figure: Interval

    @property
    def value(self) -> float:
        """How far."""
        return self.figure.value

    @property
    def low(self) -> float:
        """Where its bar begins."""
        return self.figure.reach[0]

    @property
    def high(self) -> float:
        """Where its bar ends."""
        return self.figure.reach[1]


@dataclass(frozen=True)
class _Box:
    """In pixels of the drawing."""

    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: "_Box") -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(width, 0.0) * max(height, 0.0)


def scatter(points: list[Point], name: str, label: str, *, along: str, up: str) -> str:
    """Draw models; empty without any that a logarithmic axis can show.

    Args:
        points: one per model.
        name, label: of the figure.
        along, up: words at the axes.
    """
    points = [p for p in points if p.value > 0 and all(map(math.isfinite, (p.x, p.value, p.low, p.high)))]
    if not points:
        return ""
    with drawing():
        figure = blank(360, 290)
        figure.set_layout_engine("none")
        axes = figure.add_axes((46 / 360, 40 / 290, 302 / 360, 222 / 290))
        floor = min(p.low if p.low > 0 else p.value / 2 for p in points)
        axes.set_yscale("log")
        log_ticks(axes, floor, max(p.high for p in points))
        left, right = min(p.x for p in points), max(p.x for p in points)
        room = 0.12 * (right - left) or 0.1 * (abs(right) or 1.0)
        axes.set_xlim(left - room, right + room)
        axes.grid(axis="both")
        axes.tick_params(length=0)
        axes.set_xlabel(along)
        axes.set_title(up, color=SOFT)
        for i, p in enumerate(points):
            axes.plot([p.x, p.x], [max(p.low, floor), p.high], color=ACCENT, linewidth=1.4, zorder=3)
            (dot,) = axes.plot([p.x], [p.value], marker="o", markersize=6, color=ACCENT, zorder=4)
            dot.set_gid(f"point-{i}")
        _write_names(axes, points, floor)
        return to_svg(figure, name, label)


def _write_names(axes: Any, points: list[Point], floor: float) -> None:
    pixels = axes.transData.transform
    frame = axes.bbox
    field = _Box(frame.x0, frame.y0, frame.x1, frame.y1)
    places = [pixels((p.x, p.value)) for p in points]
    centres = [(float(place[0]), float(place[1])) for place in places]
    taken = []
    for p, (x, y) in zip(points, centres, strict=True):
        taken.append(_Box(x - 4, y - 4, x + 4, y + 4))
        bar = [float(pixels((p.x, v))[1]) for v in (max(p.low, floor), p.high)]
        taken.append(_Box(x - 1.5, bar[0], x + 1.5, bar[1]))
    for p, centre in sorted(zip(points, centres, strict=True), key=lambda pair: -pair[1][1]):
        box = _best_place(_width(p.name), centre, taken, field)
        taken.append(box)
        middle, height = (box.left + box.right) / 2, (box.low + box.high) / 2
        back = axes.transData.inverted().transform
        nearest = (min(max(centre[0], box.left), box.right), min(max(centre[1], box.low), box.high))
        if math.dist(nearest, centre) > 12:
            ends = [back(centre), back(nearest)]
            axes.plot([e[0] for e in ends], [e[1] for e in ends], color=SOFT, linewidth=0.6, zorder=2)
        place = back((middle, height))
        axes.text(*place, p.name, ha="center", va="center_baseline", fontsize=_SIZE, color=INK, zorder=6)


def _best_place(width: float, centre: tuple[float, float], taken: list[_Box], field: _Box) -> _Box:
    """The nearest place that hides nothing; if there is none, the one that hides least."""
    best: tuple[float, _Box] | None = None
    for box in _places(width, centre):
        inside = box.overlap(field) / (width * _HEIGHT)
        cost = sum(box.overlap(other) for other in taken) + 1e4 * (1 - inside)
        if cost < 1e-6:
            return box
        if best is None or cost < best[0]:
            best = (cost, box)
    assert best is not None
    return best[1]


def _places(width: float, centre: tuple[float, float]) -> Iterator[_Box]:
    """Boxes around a point, from near to far, to the right first."""
    for radius in _RADII:
        for turn in range(_DIRECTIONS):
            angle = 2 * math.pi * (turn // 2 if turn % 2 == 0 else -(turn // 2) - 1) / _DIRECTIONS
            x = centre[0] + math.cos(angle) * (radius + width / 2)
            y = centre[1] + math.sin(angle) * (radius + _HEIGHT / 2)
            yield _Box(x - width / 2, y - _HEIGHT / 2, x + width / 2, y + _HEIGHT / 2)


def _width(name: str) -> float:
    """Pixels of a name, with a margin for fonts that run wider."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return (
        float(TextPath((0, 0), name, size=_SIZE, prop=FontProperties("DejaVu Sans")).get_extents().width) + 6
    )
