"""The report of a run: what was written is opened again, measured against the original, and told in a page and a card.

`report.json` holds everything; `report.html` (report/page.py) and the model card, `README.md` (report/card.py), are
made of it. The result and the original are read block by block, so the report takes no more memory than the run did.

All three are written when the folder has its name: if they fail, the model is still there. The card is written before
anything is measured, too, so that a run that is killed meanwhile leaves one.
"""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from roundel.errors import ModelError, RoundelError, Stopped
from roundel.evaluation.quality import summarize
from roundel.formatting import kind_and_line
from roundel.model.source import positions
from roundel.records.anomalies import standouts
from roundel.records.manifest import complete_layers, layer_records, read_manifest
from roundel.records.outcome import Outcome
from roundel.report.card import write_card
from roundel.report.page import available, write_page
from roundel.report.parts.quality import sentence
from roundel.system.belongings import CARD, PAGE, REPORT
from roundel.system.progress import Progress
from roundel.system.seal import check_place, is_sealed, write_sealed_json
from roundel.workflows.evaluation_options import EvaluationOptions
from roundel.workflows.measuring import (
    ask_original,
    measure_texts,
    open_measured,
    read_texts,
)
from roundel.workflows.request import ModelRequest

# Enough for a first judgement; `roundel eval` and `roundel compare` take as many as are asked for.
WINDOW, WINDOWS = 256, 16


def write_report(
    folder: Path,
    manifest: dict[str, Any],
    outcome: Outcome,
    request: ModelRequest,
    held_out: str | None,
    device: torch.device,
) -> str:
    """Write `report.json`, the card and, where its libraries are installed, `report.html` into a finished folder.

    Args:
        folder: with everything that a client reads, under its final name.
        manifest: of the run.
        outcome: the engine's records.
        request: the original model, with its tokenizer, which is the result's as well.
        held_out: text on which the result is measured; None: it is not.
        device: where it is measured.

    Returns:
        Why there is no report, and how to make it; empty where there is one.

    Raises:
        Stopped: the work was asked to end while the result was measured; the report is written.
    """
    stopped, progress = None, request.options.listener
    try:
        report: dict[str, Any] = {
            "manifest": manifest,
            "details": outcome.details(),
            "standouts": standouts(outcome.layers),
            "quality": None,
            "no_quality": "the run ended before",
        }
        _save(folder, report)
        renew_card(folder, report, progress)
        try:
            report |= _quality(folder, request, held_out, device, progress)
        except Stopped as error:
            stopped = error
            report["no_quality"] = "the run was stopped before"
        _save(folder, report)
        renew_card(folder, report, progress)
        for layer in report["standouts"]:
            progress.say(f"Out of line: {layer['words']}")
        _render(folder, report, progress)
    # Whatever it is, the model is whole.
    except Exception as error:
        return _say_failed(folder, error, progress)
    if stopped is not None:
        raise Stopped(
            f"stopped while the result was measured; the model in {folder} is whole, and its report says that it was "
            "not measured: roundel eval measures it"
        ) from stopped
    return ""


def _render(folder: Path, report: dict[str, Any], progress: Progress) -> None:
    """The page, where its libraries are installed."""
    missing = available()
    if missing:
        progress.say(missing)
    else:
        write_page(folder, report)


def _say_failed(folder: Path, error: Exception, progress: Progress) -> str:
    failed = (
        f"The report was not written ({_describe(error)}); the model in {folder} is whole, and "
        f"`roundel report {folder}` makes the report anew"
    )
    progress.say(failed)
    return failed


def _quality(
    folder: Path, request: ModelRequest, held_out: str | None, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """What was measured, or why nothing was."""
    if held_out is None:
        return {"no_quality": "it was not asked for"}
    try:
        quality = _measure(folder, request, held_out, device, progress)
    except Stopped:
        raise
    # A text that is too short, a device that is full, a library's fault: all are told, none is worth the model.
    except Exception as error:
        progress.say(f"The result was not measured: {_describe(error)}")
        return {"no_quality": _describe(error)}
    progress.say(sentence(quality, ""))
    return {"quality": quality, "no_quality": ""}


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, RoundelError) else kind_and_line(error)


def _save(folder: Path, report: dict[str, Any]) -> None:
    # Indented, outlier maps would be mostly blanks.
    write_sealed_json(folder / REPORT, "report", report)


def renew_card(folder: Path, report: dict[str, Any], progress: Progress, repo: str | None = None) -> None:
    """Write the card of a folder, or say why there is none: it costs neither the model nor the report.

    Args:
        folder, report, repo: as for `write_card`.
        progress: is told.
    """
    try:
        write_card(folder, report, repo)
    # Whatever it is, as above.
    except Exception as error:
        progress.say(f"The model card was not written: {_describe(error)}")


def is_own_card(folder: Path) -> bool:
    """Whether the card of a folder may be written anew: there is none, or one as Roundel wrote it."""
    path = folder / CARD
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return False
    return not path.exists() or is_sealed(path, "card")


def read_report(folder: Path) -> dict[str, Any]:
    """The report of an output folder, or, where a run left none, what its manifest tells.

    Raises:
        ModelError: no readable report in the folder, or none of this one.
    """
    manifest = read_manifest(folder)
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else _of_manifest(manifest)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}): an output folder of this roundel is expected"
        ) from error
    try:
        complete_layers(report["manifest"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_report(path, error) from error
    found: dict[str, Any] = report
    return found


def _no_report(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} holds something else than a report ({kind_and_line(error)}): an output folder of this "
        "roundel, with the report.json that it wrote, is expected"
    )


def carry_report(folder: Path, report: dict[str, Any], manifest: dict[str, Any], progress: Progress) -> None:
    """Write report, card and page of an exported folder: what was measured before holds of the same weights.

    Args:
        folder: under its final name.
        report: of the folder that it was made of.
        manifest: of it.
        progress: is told where they were not written.
    """
    report = {**report, "manifest": manifest}
    report.pop("seal", None)
    try:
        _save(folder, report)
        renew_card(folder, report, progress)
        _render(folder, report, progress)
    # Whatever it is, the model is whole.
    except Exception as error:
        _say_failed(folder, error, progress)


def render_again(folder: Path) -> Path:
    """Make page and card of an output folder anew from its `report.json`, or, where a run left none, from its manifest.

    A card that somebody has edited is theirs, and stays.

    Raises:
        ModelError: no readable report in the folder.
        OutputError: another file has the page's name.
        RoundelError: the libraries that the page needs are not installed.
    """
    report = read_report(folder)
    check_place(folder / PAGE, "page")
    path = folder / REPORT
    if not path.exists():
        _save(folder, report)
    try:
        if is_own_card(folder):
            write_card(folder, report)
        missing = available()
        if missing:
            raise RoundelError(missing)
        return write_page(folder, report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _no_report(path, error) from error


def _of_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """All that can be told when a run could not write its report."""
    return {
        "manifest": manifest,
        "details": {},
        "standouts": standouts(layer_records(manifest)),
        "quality": None,
        "no_quality": "the run could not write its report",
    }


def _measure(
    folder: Path, request: ModelRequest, held_out: str, device: torch.device, progress: Progress
) -> dict[str, Any]:
    with ExitStack() as opened:
        options = request.options
        evaluation = EvaluationOptions(
            text=[held_out],
            window=WINDOW,
            limit=WINDOWS,
            add_bos=True,
            device=str(device),
            block_by_block=True,
            blocks=options.blocks,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
            progress=progress,
        )
        source = open_measured(folder, request.tokenizer, evaluation, opened)
        reach = positions(source.model)
        if reach is not None and reach < WINDOW:
            evaluation = evaluation.with_window(reach)
        original = None
        if not request.in_memory:  # which has become the result itself
            # As the run opened it, whatever it was read from.
            original = open_measured(
                request.model, request.tokenizer, evaluation, opened, opener=request.open
            )
        texts = read_texts(source.tokenizer, [source, *([original] if original else [])], evaluation)
        asked = None if original is None else ask_original(original, evaluation)
        measured = measure_texts(source, texts, asked, evaluation)
    found = [asdict(summarize(t.name, t.convention, m)) for t, m in zip(texts, measured, strict=True)]
    return {"texts": found, "tasks": []}
