"""Where the bits of the written file go.

A quantized weight is more than its codes: each group has a scale and perhaps a zero point, these may lie on a
second grid with statistics of its own, outliers stand beside it. And a model is more than its quantized weights:
in a small one the embedding outweighs all the rest. Codes, scales and zeros follow from the shapes; what the
record counts beyond them is the second level with outliers' row counts and column orders; what the file
holds beyond the weights is left over.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

_PER_OUTLIER = 32


@dataclass(frozen=True)
class Entry:
    """One line of the budget.

    Attributes:
        name: what it is.
        bytes: how much it takes.
        summary: how it was found, where that is not plain.
    """

    name: str
    bytes: float
    summary: str = ""


def budget(manifest: dict[str, Any]) -> list[Entry]:
    """The lines that add up to the file; largest contributions of the weights first, the rest last."""
    recipe = manifest["recipe"]
    layers = [layer for layer in manifest["layers"] if layer["bits"] is not None]
    sums = {"codes": 0.0, "scales": 0.0, "zeros": 0.0, "outliers": 0.0}
    stored = 0.0
    for layer in layers:
        for part, bits in _parts(layer, recipe).items():
            sums[part] += bits / 8
        stored += layer["bits_per_weight"] * prod(layer["shape"]) / 8
    rest = max(stored - sum(sums.values()), 0.0)
    entries = [
        Entry("codes", sums["codes"], "the integers"),
        Entry("scales", sums["scales"], "one per group"),
        Entry("zero points", sums["zeros"], "one per group, where the grid is asymmetric"),
        Entry("outliers", sums["outliers"], "value and column, 16 bits each"),
        Entry(
            "second level and order",
            rest,
            "statistics of scales and zeros, outliers per row, orders of columns",
        ),
    ]
    entries = [entry for entry in entries if entry.bytes >= 0.5]
    file = manifest.get("file_bytes")
    if file is None:
        return entries
    if recipe.get("format") == "dense":
        return [*entries, Entry("stored densely", file - stored, "this format writes the weights out again")]
    return entries + _others(manifest, file - stored)


def _others(manifest: dict[str, Any], left: float) -> list[Entry]:
    """What the file holds beside quantized weights: matrices in the original's type, and what remains."""
    wide = (manifest.get("original") or {}).get("bits_per_weight")
    kept = [layer for layer in manifest["layers"] if layer["bits"] is None and not layer["tied"]]
    embeddings = _size([layer for layer in kept if layer["kind"] == "Embedding"], wide)
    matrices = _size([layer for layer in kept if layer["kind"] != "Embedding"], wide)
    if embeddings + matrices > left:  # written in another type, or shared: not to be told apart from here
        return [Entry("everything else", left, "embeddings, norms, what was left out, headers")]
    entries = [
        Entry("embeddings", embeddings, "not quantized"),
        Entry("matrices left as they are", matrices, "see the coverage table"),
    ]
    entries = [entry for entry in entries if entry.bytes]
    return [
        *entries,
        Entry(
            "everything else",
            left - embeddings - matrices,
            "norms, biases, headers, what the format stores wider",
        ),
    ]


def _size(layers: list[dict[str, Any]], wide: float | None) -> float:
    return sum(prod(layer["shape"]) for layer in layers) * (wide or 0) / 8


def _parts(layer: dict[str, Any], recipe: dict[str, Any]) -> dict[str, float]:
    """Bits of codes, scales, zeros and outliers of one layer, from its record and its grid."""
    grid = dict(recipe)
    for pattern, changes in (recipe.get("layers") or {}).items():
        if fnmatchcase(layer["name"], pattern):
            grid.update(changes)
    out, width = prod(layer["shape"][:-1]), layer["shape"][-1]
    group = layer["group_size"]
    groups = out * (1 if group in (None, -1) else -(-width // group))
    wide = 32 if grid.get("scale_dtype") == "float32" else 16
    zero = wide if not grid.get("round_zero", True) else layer["bits"]
    return {
        "codes": float(layer["bits"] * out * width),
        "scales": float(groups * (grid.get("scale_bits") or wide)),
        "zeros": 0.0 if layer["sym"] else float(groups * (grid.get("zero_bits") or zero)),
        "outliers": (layer["outliers"] or 0.0) * out * width * _PER_OUTLIER,
    }
