"""The report of a run: what was written is opened again, measured against the original, and told in one page.

`report.json` holds everything, `report.html` is made of it (report/page.py). The result and the original are read block
by block, so the report takes no more memory than the run did.
"""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from roundel.errors import CalibrationError, ModelError, NonFiniteError, RoundelError, Stopped
from roundel.evaluating import (
    Conditions,
    ask_original,
    measure_texts,
    open_measured,
    read_texts,
)
from roundel.evaluation.quality import summarize
from roundel.files import json_text
from roundel.model.source import positions
from roundel.opening import Given
from roundel.progress import Progress
from roundel.report.details import details_of, standouts
from roundel.report.manifest import read_manifest
from roundel.report.page import available, write_page
from roundel.report.parts.quality import sentence
from roundel.report.records import Outcome

REPORT = "report.json"
# Enough for a first judgement; `roundel eval` and `roundel compare` take as many as are wanted.
WINDOW, WINDOWS = 256, 16
# What may befall a measurement without harm to what was written.
_HARMLESS = (CalibrationError, ModelError, NonFiniteError)


def write_report(
    folder: Path,
    manifest: dict[str, Any],
    outcome: Outcome,
    given: Given,
    held_out: str | None,
    device: torch.device,
    progress: Progress,
) -> None:
    """Write `report.json` and, where its libraries are installed, `report.html` into a finished output folder.

    Args:
        folder: with everything that a client reads.
        manifest: of the run.
        outcome: the engine's records.
        given: the original model.
        held_out: text on which the result is measured; None: it is not.
        device: where it is measured.
        progress: told of the measurement, and of what could not be had.
    """
    report: dict[str, Any] = {
        "manifest": manifest,
        "details": details_of(outcome),
        "standouts": standouts(outcome.layers),
        "quality": None,
    }
    if held_out is None:
        report["no_quality"] = "it was not asked for"
    else:
        try:
            report["quality"] = _measure(folder, given, held_out, device, progress)
        except Stopped as stopped:
            raise Stopped(
                "stopped while the result was measured; the same command goes on from here"
            ) from stopped
        except _HARMLESS as error:
            report["no_quality"] = str(error)
            progress.say(f"The result was not measured: {error}")
    if report["quality"]:
        progress.say(sentence(report["quality"], ""))
    for layer in report["standouts"]:
        progress.say(f"Out of line: {layer['words']}")
    # Indented, outlier maps would be mostly blanks.
    (folder / REPORT).write_text(json_text(report), encoding="utf-8")
    missing = available()
    if missing:
        progress.say(missing)
    else:
        write_page(folder, report)


def render_again(folder: Path) -> Path:
    """Make the page of an output folder anew from its `report.json`.

    Raises:
        ModelError: no readable report in the folder.
        RoundelError: the libraries that the page needs are not installed.
    """
    read_manifest(folder)
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}): an output folder of this roundel is wanted"
        ) from error
    missing = available()
    if missing:
        raise RoundelError(missing)
    try:
        return write_page(folder, report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} holds something else than a report ({type(error).__name__}: {error}): an output folder of this "
            "roundel, with the report.json that it wrote, is wanted"
        ) from error


def _measure(
    folder: Path, given: Given, held_out: str, device: torch.device, progress: Progress
) -> dict[str, Any]:
    with ExitStack() as opened:
        conditions = Conditions(
            texts=[held_out],
            window=WINDOW,
            limit=WINDOWS,
            add_bos=True,
            device=str(device),
            block_by_block=True,
            blocks=given.blocks,
            trust_remote_code=given.trust_remote_code,
            allow_pickle=given.allow_pickle,
            progress=progress,
        )
        source = open_measured(folder, None, conditions, opened)
        reach = positions(source.model)
        if reach is not None and reach < WINDOW:
            conditions = conditions.with_window(reach)
        original = None
        if not isinstance(given.model, torch.nn.Module):  # which has become the result itself
            # As the run opened it, whatever it was read from.
            original = open_measured(given.model, given.tokenizer, conditions, opened, opener=given.open)
        texts = read_texts(source.tokenizer, [source, *([original] if original else [])], conditions)
        asked = None if original is None else ask_original(original, conditions)
        measured = measure_texts(source, texts, asked, conditions)
    found = [asdict(summarize(t.name, t.convention, m)) for t, m in zip(texts, measured, strict=True)]
    return {"texts": found, "tasks": []}
