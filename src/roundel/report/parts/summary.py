"""The first screen: what was done to what, what it weighs, what to look at."""

from math import prod
from pathlib import PurePath
from typing import Any

from roundel.report.parts.layers import left_out, noted, remark
from roundel.report.plots.numbers import count, duration, fixed, percent, size


def model_name(manifest: dict[str, Any]) -> str:
    """The last part of what the user named as the model."""
    source = str(manifest["source"])
    return PurePath(source).name or source


def describe_method(recipe: dict[str, Any]) -> str:
    """`autoround, 4 bit, groups of 128, asymmetric`."""
    group = recipe.get("group_size")
    words = [str(recipe.get("method", ""))]
    if recipe.get("mixture") or recipe.get("type"):
        words.append(str(recipe.get("mixture") or recipe["type"]))
    else:
        words += [
            f"{recipe['bits']} bit" if "bits" in recipe else "",
            "" if group is None else "one scale a row" if group == -1 else f"groups of {group}",
            "symmetric" if recipe.get("sym") else "asymmetric",
        ]
    if recipe.get("layers"):
        words.append("some layers otherwise")
    if recipe.get("act_bits"):
        words.append(f"inputs in {recipe['act_bits']} bit")
    if recipe.get("kv_bits"):
        words.append(f"keys and values in {recipe['kv_bits']} bit")
    return ", ".join(word for word in words if word)


def figures(manifest: dict[str, Any]) -> list[dict[str, str]]:
    """The numbers on top: what each is, its value, a remark."""
    original, layers = manifest["original"], manifest["layers"]
    quantized = [layer for layer in layers if layer["bits"] is not None]
    matrices = sum(prod(layer["shape"]) for layer in layers)
    share = sum(prod(layer["shape"]) for layer in quantized) / matrices if matrices else 0.0
    paper, bits = manifest["paper_bits"], manifest["bits_per_weight"]
    found = [
        {
            "name": "Bits per parameter",
            "value": fixed(manifest.get("bits_per_parameter")),
            "words": f"the whole file over {count(original['parameters'])} parameters",
        },
        {
            "name": "File",
            "value": size(manifest.get("file_bytes")),
            "words": _before(original.get("bytes"), manifest.get("file_bytes")),
        },
        {
            "name": "Bits per weight",
            "value": fixed(bits),
            "words": f"{fixed(paper)} as papers count"
            if abs(paper - bits) > 5e-4
            else "of those quantized, with scales and zeros",
        },
        {
            "name": "Quantized",
            "value": f"{count(len(quantized))} layers",
            "words": f"{percent(share, 1)} of all weights in matrices",
        },
        {
            "name": "Time",
            "value": duration(manifest["seconds"]),
            "words": f"on {manifest['device']}, {_processes(manifest)}",
        },
        {"name": "Peak memory", "value": size(manifest["peak_memory_bytes"]), "words": "of the process"},
    ]
    if manifest.get("outlier_share"):
        share = manifest["outlier_share"]
        found.insert(
            3, {"name": "Outliers", "value": percent(share, 3), "words": "of the weights, kept in 16 bit"}
        )
    return found


def _before(before: float | None, after: float | None) -> str:
    if not before:
        return ""
    return f"from {size(before)}" + (
        f", {before / after:.1f} times smaller" if after and before > after else ""
    )


def _processes(manifest: dict[str, Any]) -> str:
    threads, ranks = manifest.get("threads") or 1, manifest.get("ranks") or 1
    words = f"{threads} thread{'s' if threads > 1 else ''}"
    return words + (f" in each of {ranks} processes" if ranks > 1 else "")


def moment(created: str) -> str:
    """`2026-01-02 03:04 UTC`."""
    words = created.replace("T", " ")
    return words[:16] + " UTC" if words.endswith("+00:00") else words


def describe_calibration(manifest: dict[str, Any]) -> str:
    """What the method looked at."""
    found = manifest.get("calibration")
    if not found:
        return "no calibration data"
    tokens = found.get("tokens_per_sample")
    shape = f", {count(found.get('samples'))} samples of {count(tokens)} tokens" if tokens else ""
    return f"{found['source']}{shape}"


def warnings(report: dict[str, Any]) -> list[str]:
    """What to look at before the model is used; empty where nothing is out of line."""
    manifest = report["manifest"]
    read_from = manifest["original"].get("read_from")
    found = [f"the original: {read_from}"] if read_from else []
    found += [
        f"{standout['name']} is out of line: {remark(standout)}" for standout in report.get("standouts") or []
    ]
    found += noted(manifest["layers"], manifest["blocks"])
    found += left_out(manifest["layers"])
    kept = [block["name"] for block in manifest["blocks"] if block.get("kept") == "start" and block["curve"]]
    if kept:
        found.append(
            f"tuning did not help {len(kept)} of {len(manifest['blocks'])} blocks, which keep their start"
        )
    return found
