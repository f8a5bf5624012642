"""Layers whose rounding error is out of line: what a reader must see first, if a layer is broken.

Errors are compared as logarithms, with medians, which a broken layer does not move: with all layers on the same grid,
and with the like, the same Linear of the other blocks. What is named must be far from both: first blocks and narrow
projections are often a little worse than the rest, in a sound model too. Rejected: a threshold for the error itself,
which at 2 bits is 0.2 and at 8 bits 0.00003.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, isfinite, log
from statistics import median
from typing import Any

# Out of line is an error that is so many times the usual one, and more standard deviations from it than that. (A normal
# distribution has 1.48 times its median deviation as standard deviation.) The second is not asked where most of the
# weight is lost: at 2 bits a broken layer is no farther off than that from sound ones.
_FACTOR = 3.0
_DEVIATIONS = 5.0
_OF_MEDIAN = 1.4826
_LOST = 0.75
# Layers without which nobody knows what is usual.
_FEW = 4
_NO_ERROR = 1e-12


def standouts(layers: Iterable[Any]) -> list[dict[str, Any]]:
    """Layers whose error is out of line, the worst first; one with too few others to compare it with is not judged.

    Args:
        layers: LayerRecords, or anything else (mappings too) with name, block, shape and error (relative squared
            rounding error of the weight; None: not quantized), and bits and group_size where they are known.

    Returns:
        Of each its `name`, its `error` (None: not finite), the `median` of its like (of all on its grid, where it has
        none), and `words`.
    """
    quantized = [layer for layer in layers if _get(layer, "error") is not None]
    judged = [_Judged.of(layer) for layer in quantized if isfinite(_get(layer, "error"))]
    grids: dict[object, list[_Judged]] = defaultdict(list)
    for layer in judged:
        grids[layer.grid].append(layer)
    found: list[_Odd] = []
    for grid, alike in grids.items():
        if len(alike) >= _FEW:
            found += _out_of_line(alike)
            continue
        # Too few to tell what is usual. On a coarser grid errors are larger: not larger than those is sound.
        for layer in alike:
            coarser = [
                o
                for o in judged
                if o.bits is not None and layer.bits and o.bits <= layer.bits and o.grid != grid
            ]
            if len(coarser) >= _FEW:
                found += [odd for odd in _out_of_line([layer, *coarser]) if odd.layer is layer]
    lost = [_get(layer, "name") for layer in quantized if not isfinite(_get(layer, "error"))]
    told = [
        {"name": n, "error": None, "median": None, "words": f"{n}: its error is not finite"} for n in lost
    ]
    return told + [odd.told() for odd in sorted(found, key=lambda odd: odd.beyond, reverse=True)]


@dataclass(frozen=True)
class _Judged:
    name: str
    kind: object
    bits: int | None
    grid: object
    error: float
    log: float

    @classmethod
    def of(cls, layer: Any) -> "_Judged":
        bits, error = _get(layer, "bits"), float(_get(layer, "error"))
        kind = re.sub(r"\d+", "*", _get(layer, "name")), tuple(_get(layer, "shape"))
        grid = bits, _get(layer, "group_size")
        return cls(_get(layer, "name"), kind, bits, grid, error, log(max(error, _NO_ERROR)))


@dataclass(frozen=True)
class _Odd:
    """A layer out of line: how far beyond the limit, what is usual, and whether for its like."""

    layer: _Judged
    beyond: float
    usual: float
    among_kin: bool

    def told(self) -> dict[str, Any]:
        name, error, times = self.layer.name, self.layer.error, exp(self.layer.log - self.usual)
        times = float(f"{times:.2g}")
        whose = "its like" if self.among_kin else "the others"
        words = f"{name}: error {error:.2g}, {times:,.{0 if times >= 10 else 1}f} times that of {whose}"
        return {"name": name, "error": error, "median": exp(self.usual), "words": words}


def _get(layer: Any, key: str) -> Any:
    return layer.get(key) if isinstance(layer, Mapping) else getattr(layer, key, None)


def _out_of_line(layers: list[_Judged]) -> list[_Odd]:
    kinds: dict[object, list[float]] = defaultdict(list)
    for layer in layers:
        kinds[layer.kind].append(layer.log)
    for logs in kinds.values():
        logs.sort()
    middle = median(layer.log for layer in layers)
    usual = [_without(kinds[layer.kind], layer.log) for layer in layers]
    spread = _spread([layer.log - middle for layer in layers])
    of_kin = _spread(
        [layer.log - like for layer, like in zip(layers, usual, strict=True) if like is not None]
    )
    found = []
    for layer, like in zip(layers, usual, strict=True):
        beyond = layer.log - middle - _limit(layer, spread)
        if like is not None:
            beyond = min(beyond, layer.log - like - _limit(layer, of_kin))
        if beyond > 0:
            found.append(_Odd(layer, beyond, middle if like is None else like, like is not None))
    return found


def _limit(layer: _Judged, spread: float) -> float:
    return log(_FACTOR) if layer.error > _LOST else max(log(_FACTOR), _DEVIATIONS * spread)


def _spread(differences: list[float]) -> float:
    """Standard deviation of differences, of which a few may be anything."""
    return _OF_MEDIAN * median(map(abs, differences)) if differences else 0.0


def _without(ordered: list[float], value: float) -> float | None:
    """The median of sorted numbers without one of them."""
    count, place = len(ordered) - 1, bisect_left(ordered, value)
    if not count:
        return None
    low, high = ((count - 1) // 2, count // 2)
    return sum(ordered[i if i < place else i + 1] for i in (low, high)) / 2
