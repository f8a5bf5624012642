"""The page of a run: `report.html`, one file that says what was done and whether to trust it.

It is a pure function of `report.json`. Everything is inside: style, drawings as SVG, outlier maps as tiny
pictures. There is no script, and a content policy forbids the browser to ask for anything, so the page looks the
same on a plane and in ten years. Order of the sections: the order in which questions come up.

matplotlib and jinja2 (extra `report`) are imported here only when a page is made.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from roundel.report.parts.budget import budget
from roundel.report.parts.exported import measured_before
from roundel.report.parts.layers import (
    coverage_rows,
    input_ratio,
    layer_grid,
    ranked,
    recurring_channels,
    remark,
)
from roundel.report.parts.outliers import outlier_maps
from roundel.report.parts.quality import have_bounds, sentence, task_rows, text_rows
from roundel.report.parts.summary import (
    describe_calibration,
    describe_method,
    figures,
    model_name,
    moment,
    warnings,
)
from roundel.report.parts.template import fill
from roundel.report.plots.blocks import cost_plot, loss_plot
from roundel.report.plots.curves import tuning_plot
from roundel.report.plots.heat import heat_map
from roundel.report.plots.numbers import NONE, count, fixed, percent, short, size
from roundel.system.belongings import PAGE
from roundel.system.seal import unsealed, write_sealed

_WANTED = ("matplotlib", "jinja2")
_MANY_ROWS = 40


def available() -> str:
    """Empty where a page can be made; else a sentence that says how to get there."""
    missing = [name for name in _WANTED if find_spec(name) is None]
    if not missing:
        return ""
    return f"no {PAGE}: {' and '.join(missing)} missing; pip install 'roundel[report]' brings what the page needs"


def write_page(folder: Path, report: dict[str, Any]) -> Path:
    """Render a report into `report.html` in a folder and return its path."""
    path = folder / PAGE
    write_sealed(path, "page", render_page(report))
    return path


def render_page(report: dict[str, Any]) -> str:
    """The page as HTML, the same for the same report to the last byte.

    Args:
        report: manifest, details, quality (may be None, then `no_quality` says why) and standouts, as `report.json`
            holds them.
    """
    manifest = report["manifest"]
    details = report.get("details") or {}
    quality = report.get("quality")
    blocks, layers = manifest["blocks"], manifest["layers"]
    quantized = [layer for layer in layers if layer["bits"] is not None]
    standouts = report.get("standouts") or []
    return fill(
        "run.html.j2",
        seal=unsealed("page"),
        intervals=have_bounds((quality or {}).get("texts") or []),
        title=f"{model_name(manifest)}: {describe_method(manifest['recipe'])}",
        model=model_name(manifest),
        method=describe_method(manifest["recipe"]),
        calibration=describe_calibration(manifest),
        manifest=manifest,
        created=moment(manifest["created"]),
        figures=figures(manifest),
        verdict=f"{sentence(quality, report.get('no_quality') or '')} {measured_before(report)}".rstrip(),
        warnings=warnings(report),
        texts=text_rows(quality or {}),
        tasks=task_rows(quality or {}),
        loss=loss_plot(blocks, "loss-per-block"),
        blocks=len(blocks),
        block_rows=_block_rows(blocks),
        errors=heat_map(
            layer_grid(quantized, {layer["name"]: layer["error"] for layer in quantized}),
            "error-per-layer",
            "Relative squared error of each Linear's weights, blocks along, kinds of Linears down, colours logarithmic",
            marked={standout["name"] for standout in standouts},
        ),
        error_rows=_error_rows(quantized, standouts),
        curves=tuning_plot([block["curve"] for block in blocks], "tuning-curves"),
        weight_map=heat_map(
            layer_grid(quantized, _figure(details, "weight", "largest")),
            "weight-outliers",
            "Largest weight of each Linear over its standard deviation",
        ),
        kurtosis_map=heat_map(
            layer_grid(quantized, _figure(details, "weight", "kurtosis")),
            "weight-kurtosis",
            "Kurtosis of each Linear's weights; 3 for a normal distribution",
        ),
        input_map=heat_map(
            layer_grid(
                quantized, {name: input_ratio(detail.get("inputs")) for name, detail in details.items()}
            ),
            "input-outliers",
            "Largest input channel of each Linear over its median channel",
        ),
        weight_rows=_weight_rows(details),
        input_rows=_input_rows(details),
        channels=recurring_channels(quantized, details),
        maps=outlier_maps(quantized, details),
        budget=_budget_rows(manifest),
        parameters=count(manifest["original"]["parameters"]),
        time=cost_plot(
            [block["seconds"] for block in blocks],
            "time-per-block",
            "seconds per block",
            "Seconds that each block took",
        ),
        memory=cost_plot(
            [_gigabytes(block.get("peak_bytes")) for block in blocks],
            "memory-per-block",
            "peak memory while at the block, GB",
            "Peak memory of each block in gigabytes",
            second=True,
        ),
        coverage=coverage_rows(layers, details),
        long=len(layers) > _MANY_ROWS,
        recipe=_pairs(manifest["recipe"]),
        facts=_facts(manifest),
    )


def _block_rows(blocks: list[dict[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for block in blocks:
        start, end = block["loss_start"], block["loss_end"]
        rows.append(
            {
                "name": block["name"],
                "start": short(start, 3),
                "end": short(end, 3),
                "gain": percent(1 - end / start, 1) if start and end is not None else NONE,
                "kept": block["kept"] or NONE,
                "seconds": f"{block['seconds']:.1f}",
                "memory": size(block.get("peak_bytes")),
                "note": block["note"],
            }
        )
    return rows


def _error_rows(quantized: list[dict[str, Any]], standouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The standouts first, in their order, then the largest errors."""
    known = {standout["name"]: standout for standout in standouts}
    places = {name: place for place, name in enumerate(known)}
    worst = sorted(
        (layer for layer in quantized if layer["error"] is not None),
        key=lambda layer: (places.get(layer["name"], len(known)), -layer["error"], layer["name"]),
    )
    return [
        {
            "name": layer["name"],
            "error": short(layer["error"], 3),
            "median": short(known[layer["name"]].get("median"), 3) if layer["name"] in known else "",
            "words": remark(known[layer["name"]]) if layer["name"] in known else "",
            "marked": layer["name"] in known,
        }
        for layer in worst[: max(8, len(known))]
    ]


def _figure(details: dict[str, Any], part: str, figure: str) -> dict[str, float | None]:
    return {name: detail[part][figure] for name, detail in details.items() if detail.get(part)}


def _weight_rows(details: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "largest": short(extreme, 3),
            "kurtosis": short(record["kurtosis"], 3),
            "beyond": percent(record["beyond_6_std"], 4),
            "std": short(record["std"], 3),
        }
        for name, record, extreme in ranked(details, "weight", 8)
    ]


def _input_rows(details: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "ratio": short(extreme, 3),
            "largest": short(record["largest"], 3),
            "median": short(record["median"], 3),
            "top": ", ".join(f"{channel} ({short(peak, 2)})" for channel, peak in record["top"][:4]),
        }
        for name, record, extreme in ranked(details, "inputs", 8)
    ]


def _budget_rows(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    entries = budget(manifest)
    total = sum(entry.bytes for entry in entries) or 1.0
    parameters = manifest["original"]["parameters"]
    return [
        {
            "name": entry.name,
            "size": size(entry.bytes),
            "share": percent(entry.bytes / total, 1),
            "width": f"{max(100 * entry.bytes / total, 0):.2f}",
            "bits": fixed(8 * entry.bytes / parameters),
            "words": entry.summary,
        }
        for entry in entries
    ]


def _gigabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e9


def _pairs(data: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, _plain(value)) for key, value in sorted(data.items())]


def _facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """The manifest but for what has a section of its own; nested keys joined by dots."""
    shown = {"recipe", "layers", "blocks", "files"}
    facts: list[tuple[str, str]] = []
    for key, value in manifest.items():
        if key in shown:
            continue
        if isinstance(value, dict):
            facts += [(f"{key}.{inner}", _plain(content)) for inner, content in value.items()]
        else:
            facts.append((key, _plain(value)))
    return facts


def _plain(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(content)}" for key, content in value.items()) or NONE
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or NONE
    return str(value)
