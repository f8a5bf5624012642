"""The page of `roundel compare`: several models against one original, one table and the pictures beside it.

Like the page of a run it is one file without scripts or requests, and a pure function of its data. The verdict comes
first: which differences are real, which are noise.
"""

import re
from pathlib import PurePath
from typing import Any

from roundel.evaluation.interval import Interval
from roundel.evaluation.tasks.results import without_parts
from roundel.report.parts.layers import layer_grid, remark
from roundel.report.parts.quality import have_bounds, interval, score, stacked
from roundel.report.parts.summary import moment
from roundel.report.parts.template import fill
from roundel.report.plots.heat import Grid, common_span, heat_map
from roundel.report.plots.numbers import NONE, count, fixed, short, size
from roundel.report.plots.pairs import pairs_plot
from roundel.report.plots.scatter import Point, scatter
from roundel.system.seal import unsealed

# So few that two maps fit side by side.
_FEW_BLOCKS = 10
_FIGURES = {"kl": "KL divergence", "loss": "loss per token"}


def render_comparison(comparison: dict[str, Any]) -> str:
    """The page as HTML, the same for the same comparison to the last byte.

    Args:
        comparison: reference, models, pairs and verdict, as `roundel compare` measures them.
    """
    reference, models = comparison["reference"], comparison["models"]
    texts = _texts(comparison)
    labels = _labels(texts)
    return fill(
        "comparison.html.j2",
        seal=unsealed("comparison"),
        intervals=have_bounds(
            text for model in [reference, *models] for text in _quality(model).get("texts") or []
        ),
        title=f"{len(models)} models against {reference['name']}",
        reference=reference,
        created=moment(comparison["created"]),
        versions=comparison["versions"],
        parameters=count(reference["parameters"]),
        verdict=comparison["verdict"],
        standouts=[
            (model["name"], standout["name"], remark(standout))
            for model in models
            for standout in model.get("standouts") or []
        ],
        texts=texts,
        labels=labels,
        conventions=_conventions(comparison),
        tasks=_tasks(comparison),
        rows=[_row(reference, texts, comparison, original=True)]
        + [_row(model, texts, comparison) for model in models],
        plots=_plots(models, labels),
        pairs=_pairs(comparison["pairs"], labels),
        heats=_heats(models),
        narrow=_blocks(models) <= _FEW_BLOCKS,
        models=models,
    )


def _texts(comparison: dict[str, Any]) -> list[str]:
    """Names of all texts, in the order in which they appear."""
    found: dict[str, None] = {}
    for model in [comparison["reference"], *comparison["models"]]:
        for text in _quality(model).get("texts") or []:
            found.setdefault(text["text"])
    return list(found)


def _labels(texts: list[str]) -> dict[str, str]:
    """Names without folders, where these tell the texts apart."""
    short_names = {text: PurePath(text).name for text in texts}
    return short_names if len(set(short_names.values())) == len(texts) else {text: text for text in texts}


def _tasks(comparison: dict[str, Any]) -> list[str]:
    """Names of tasks and groups, each a column."""
    found: dict[str, None] = {}
    for model in [comparison["reference"], *comparison["models"]]:
        for task in without_parts(_quality(model).get("tasks") or []):
            found.setdefault(task["task"])
    return list(found)


def _conventions(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for model in [*comparison["models"], comparison["reference"]]:
        for text in _quality(model).get("texts") or []:
            words = f"{text.get('convention', '')}; {count(text['windows'])} windows, {count(text['tokens'])} tokens"
            found.setdefault(text["text"], words)
    return list(found.items())


def _quality(model: dict[str, Any]) -> dict[str, Any]:
    return model.get("quality") or {}


def _of_text(model: dict[str, Any], text: str) -> dict[str, Any]:
    return next((found for found in _quality(model).get("texts") or [] if found["text"] == text), {})


def _row(
    model: dict[str, Any], texts: list[str], comparison: dict[str, Any], *, original: bool = False
) -> dict[str, Any]:
    """One model in the table."""
    scores = {task["task"]: (score(task), _changed(task)) for task in _quality(model).get("tasks") or []}
    measured = [_of_text(model, text) for text in texts]
    return {
        "name": model["name"],
        "original": original,
        "description": "the original" if original else model.get("description", ""),
        "bits": fixed(model.get("bits_per_parameter"), 2),
        "size": size(model.get("file_bytes")),
        "texts": [
            {
                "perplexity": stacked(found.get("perplexity"), fixed),
                "kl": stacked((found.get("kl") or {}).get("mean"), short),
                "top1": stacked(found.get("top1"), lambda x: fixed(100 * x, 1)),
            }
            for found in measured
        ],
        "tasks": [scores.get(task, (NONE, "")) for task in _tasks(comparison)],
    }


def _changed(task: dict[str, Any]) -> str:
    """Answers that are no longer the original's."""
    flips = task.get("flips")
    return f"lost {flips['lost']}, won {flips['won']}" if flips else ""


def _plots(models: list[dict[str, Any]], labels: dict[str, str]) -> list[dict[str, str]]:
    """Divergence against bits and against bytes for each text, and perplexity where no divergence is known."""
    plots = []
    for number, text in enumerate(labels):
        divergence = any((_of_text(model, text).get("kl") or {}).get("mean") for model in models)
        bits, megabytes = [], []
        for model in models:
            found = _of_text(model, text)
            figure = Interval.read(
                (found.get("kl") or {}).get("mean") if divergence else found.get("perplexity")
            )
            if figure is None:
                continue
            if model.get("bits_per_parameter") is not None:
                bits.append(Point(model["name"], model["bits_per_parameter"], figure))
            if model.get("file_bytes") is not None:
                megabytes.append(Point(model["name"], model["file_bytes"], figure))
        what = "KL divergence from the original" if divergence else "perplexity"
        unit, factor = _unit([point.x for point in megabytes])
        scaled = [Point(p.name, p.x / factor, p.figure) for p in megabytes]
        label = f"{what} on {labels[text]} against "
        plots.append(
            {
                "text": text,
                "what": what,
                "bits": scatter(
                    bits,
                    f"by-bits-{number}",
                    label + "bits per parameter",
                    along="bits per parameter",
                    up=what,
                ),
                "bytes": scatter(
                    scaled, f"by-bytes-{number}", label + "file size", along=f"file size, {unit}", up=what
                ),
            }
        )
    return [plot for plot in plots if plot["bits"] or plot["bytes"]]


def _unit(sizes: list[float]) -> tuple[str, float]:
    largest = max(sizes, default=0.0)
    return ("GB", 1e9) if largest >= 2e9 else ("MB", 1e6) if largest >= 2e6 else ("kB", 1e3)


def _pairs(pairs: list[dict[str, Any]], labels: dict[str, str]) -> list[dict[str, Any]]:
    """Differences by text and figure: a plot and a table each."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for pair in pairs:
        groups.setdefault((pair["text"], pair["figure"]), []).append(pair)
    found = []
    for number, ((text, figure), members) in enumerate(groups.items()):
        title = f"{_FIGURES.get(figure, figure)} on {labels.get(text, text)}"
        rows = [
            {
                "a": pair["a"],
                "b": pair["b"],
                "difference": interval(pair["difference"], lambda x: short(x, 3)),
                "noise": pair["noise"],
            }
            for pair in members
        ]
        found.append({"title": title, "plot": pairs_plot(members, f"pairs-{number}", title), "rows": rows})
    return found


def _blocks(models: list[dict[str, Any]]) -> int:
    return max(
        (
            layer["block"] + 1
            for model in models
            for layer in model.get("layers") or []
            if layer["block"] is not None
        ),
        default=0,
    )


def _heats(models: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Error maps of all models in the same colours."""
    grids: list[tuple[dict[str, Any], Grid, set[str]]] = []
    for model in models:
        errors = {layer["name"]: layer["error"] for layer in model.get("layers") or []}
        marked = {standout["name"] for standout in model.get("standouts") or []}
        grids.append((model, layer_grid(model.get("layers") or [], errors), marked))
    drawn = [common_span([grid], marked) for _, grid, marked in grids if grid.values()]
    if not drawn:
        return []
    span = (min(low for low, _ in drawn), max(high for _, high in drawn))
    return [
        {
            "name": model["name"],
            "svg": heat_map(
                grid,
                f"errors-{number}-{re.sub(r'[^A-Za-z0-9]+', '-', model['name'])}",
                f"Relative squared error of each Linear's weights in {model['name']}",
                marked=marked,
                span=span,
            ),
        }
        for number, (model, grid, marked) in enumerate(grids)
    ]
