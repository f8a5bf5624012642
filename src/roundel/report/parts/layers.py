"""Layers as a reader looks at them: which kind in which block, which stand out, which were left alone."""

import re
from collections import Counter, defaultdict
from typing import Any

from roundel.report.plots.heat import Grid, to_grid
from roundel.report.plots.numbers import NONE, TIMES, count, fixed, percent, short

# Reasons to stay that nobody wonders about.
_EXPECTED = ("embedding", "output head", "router", "left out by a skip pattern")
_MOST_NAMED = 4


def kind_of(layer: dict[str, Any]) -> str:
    """The name within the block, the same in every block; experts are `*`."""
    inside = layer["name"]
    if layer["block"] is not None:
        parts = inside.split(".")
        number = str(layer["block"])
        if number in parts:
            inside = ".".join(parts[parts.index(number) + 1 :]) or inside
    return re.sub(r"\.\d+(?=\.|$)", ".*", inside)


def layer_grid(layers: list[dict[str, Any]], values: dict[str, float | None]) -> Grid:
    """Values of layers by name, laid out as kinds by blocks; those outside the blocks are not on it."""
    known = []
    for layer in layers:
        value = values.get(layer["name"])
        if value is not None and layer["block"] is not None:
            known.append((kind_of(layer), layer["block"], layer["name"], value))
    return to_grid(known)


def describe_shape(shape: list[int]) -> str:
    """`576 × 1536`."""
    return f" {TIMES} ".join(str(n) for n in shape)


def coverage_rows(layers: list[dict[str, Any]], details: dict[str, Any]) -> list[dict[str, str]]:
    """The coverage table, every layer of the manifest."""
    rows = []
    for layer in layers:
        quantized = layer["bits"] is not None
        words = [layer["reason"], layer["note"], layer.get("smoothing", "")]
        if layer.get("inputs"):
            words.append(f"inputs: {layer['inputs']}")
        if layer.get("outliers"):
            words.append(f"{percent(layer['outliers'], 3)} outliers")
        group = layer["group_size"]
        rows.append(
            {
                "name": layer["name"],
                "kind": layer["kind"],
                "block": NONE if layer["block"] is None else str(layer["block"]),
                "shape": describe_shape(layer["shape"]),
                "bits": fixed(layer["bits_per_weight"], 3) if quantized else NONE,
                "code": str(layer["bits"]) if quantized else NONE,
                "group": NONE if not quantized else "row" if group == -1 else str(group),
                "error": short(layer["error"], 3),
                "tokens": count(layer["tokens"]),
                "words": "; ".join(word for word in words if word),
                "left": "" if quantized else "left",
            }
        )
    return rows


def remark(standout: dict[str, Any]) -> str:
    """What is out of line about a layer, without its name."""
    name = standout["name"]
    words = str(standout.get("words") or "").removeprefix(f"{name}: ")
    if words or standout.get("error") is None:
        return words or "its error is not finite"
    return f"error {short(standout['error'], 3)}, usual is {short(standout.get('median'), 3)}"


def left_out(layers: list[dict[str, Any]]) -> list[str]:
    """Sentences on layers that stay as they are and that one would have thought quantized."""
    names: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        if layer["bits"] is None and not layer["reason"].startswith(_EXPECTED):
            names[layer["reason"] or "no reason given"].append(layer["name"])
    return [f"{_some(found)} not quantized: {reason}" for reason, found in names.items()]


def noted(layers: list[dict[str, Any]], blocks: list[dict[str, Any]]) -> list[str]:
    """Sentences on what went otherwise than asked."""
    names: dict[str, list[str]] = defaultdict(list)
    for record in [*blocks, *layers]:
        if record.get("note"):
            # Counts of tokens differ from expert to expert; the message is the same.
            names[re.sub(r"\d+ tokens", "too few tokens", record["note"])].append(record["name"])
    return [f"{_some(found)}: {note}" for note, found in names.items()]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"


def ranked(details: dict[str, Any], figure: str, most: int = 10) -> list[tuple[str, dict[str, Any], float]]:
    """Layers with the most extreme weights or inputs: (name, its record, how extreme).

    Args:
        figure: `weight` (largest over standard deviation) or `inputs` (largest channel over the median one).
    """
    found = []
    for name, detail in details.items():
        record = detail.get(figure)
        if not record:
            continue
        extreme = record["largest"] if figure == "weight" else input_ratio(record)
        if extreme is not None:
            found.append((name, record, extreme))
    return sorted(found, key=lambda item: (-item[2], item[0]))[:most]


def input_ratio(inputs: dict[str, Any] | None) -> float | None:
    """Largest channel over the median one; None where it is not known or the median is zero."""
    if not inputs or not inputs["median"]:
        return None
    return float(inputs["largest"] / inputs["median"])


def recurring_channels(
    layers: list[dict[str, Any]], details: dict[str, Any], most: int = 8
) -> list[dict[str, str]]:
    """Input channels that are among the largest in several blocks, of Linears with inputs of the same width."""
    blocks: dict[tuple[int, int], set[int]] = defaultdict(set)
    kinds: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    peaks: dict[tuple[int, int], float] = defaultdict(float)
    for layer in layers:
        inputs = (details.get(layer["name"]) or {}).get("inputs")
        if not inputs or layer["block"] is None:
            continue
        for channel, peak in inputs["top"]:
            key = (layer["shape"][-1], channel)
            blocks[key].add(layer["block"])
            kinds[key][kind_of(layer)] += 1
            peaks[key] = max(peaks[key], peak)
    total = len({layer["block"] for layer in layers if layer["block"] is not None})
    often = [key for key in blocks if len(blocks[key]) >= max(2, total / 4)]
    often.sort(key=lambda key: (-len(blocks[key]), -peaks[key], key))
    return [
        {
            "channel": str(channel),
            "width": str(width),
            "blocks": f"{len(blocks[width, channel])} of {total}",
            "peak": short(peaks[width, channel], 3),
            "kinds": ", ".join(kind for kind, _ in kinds[width, channel].most_common(_MOST_NAMED)),
        }
        for width, channel in often[:most]
    ]
