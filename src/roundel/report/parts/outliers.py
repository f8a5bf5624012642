"""Where SpQR's outliers are, in pictures and words: whole columns, whole rows, whole heads, or scattered."""

from typing import Any

from roundel.report.parts.layers import kind_of
from roundel.report.plots.maps import outlier_picture
from roundel.report.plots.numbers import count, percent

# A head that holds so many times its share is named.
_CROWDED = 2.0
_MOST_NAMED = 3
# Experts of one kind in a block look alike; so many maps of a block are shown.
_MOST_MAPS = 12


def outlier_maps(layers: list[dict[str, Any]], details: dict[str, Any]) -> list[dict[str, Any]]:
    """Maps of the first, the middle and the last block that have outliers: (block, its maps)."""
    by_block: dict[int, list[dict[str, Any]]] = {}
    for layer in layers:
        found = (details.get(layer["name"]) or {}).get("outliers")
        if found and found["count"] and layer["block"] is not None:
            by_block.setdefault(layer["block"], []).append(layer)
    blocks = sorted(by_block)
    if not blocks:
        return []
    chosen = sorted({blocks[0], blocks[len(blocks) // 2], blocks[-1]})
    places = {blocks[0]: "first", blocks[-1]: "last"} if len(blocks) > 1 else {}
    return [
        {
            "block": str(block),
            "place": places.get(block, "middle" if len(blocks) > 1 else "only"),
            "maps": [
                _map(layer, details[layer["name"]]["outliers"]) for layer in _one_of_each(by_block[block])
            ],
        }
        for block in chosen
    ]


def _one_of_each(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {}
    for layer in layers:
        kinds.setdefault(kind_of(layer), layer)
    return list(kinds.values())[:_MOST_MAPS]


def _map(layer: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    out, width = found["shape"]
    return {
        "name": layer["name"],
        "kind": kind_of(layer),
        "picture": outlier_picture(found["map"]),
        "ratio": f"{width} / {out}",
        "words": _describe(found),
    }


def _describe(found: dict[str, Any]) -> list[str]:
    """Sentences under a map."""
    out, width = found["shape"]
    said = [
        f"{count(found['count'])} outliers, {percent(found['count'] / (out * width), 3)}",
        f"{percent(found['in_top_columns'], 0)} in the fullest 1 % of columns{_named(found['top_columns'])}",
        f"{percent(found['in_top_rows'], 0)} in the fullest 1 % of rows{_named(found['top_rows'])}",
    ]
    heads = found.get("heads")
    if heads and sum(heads):
        even = sum(heads) / len(heads)
        crowded = [i for i, n in enumerate(heads) if n >= _CROWDED * even]
        crowded.sort(key=lambda i: -heads[i])
        if crowded:
            shown = ", ".join(f"{i} ({percent(heads[i] / sum(heads), 0)})" for i in crowded[:_MOST_NAMED])
            said.append(f"crowded heads of {len(heads)}: {shown}")
        else:
            said.append(f"even over its {len(heads)} heads")
    return said


def _named(top: list[list[int]]) -> str:
    shown = [str(index) for index, n in top[:_MOST_NAMED] if n]
    return f" ({', '.join(shown)})" if shown else ""
