"""Several recipes on one model in one go: opened, planned and walked together, each with an output of its own."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from roundel.engine.journal import Journal
from roundel.errors import OutputError, RecipeError
from roundel.evaluation.windows import check_text
from roundel.recipe import Recipe
from roundel.records.manifest import MANIFEST, read_manifest
from roundel.system.ranks import Ranks
from roundel.workflows.common import Common
from roundel.workflows.destination import WriteOptions
from roundel.workflows.quantize import claim_target, execute, open_run
from roundel.workflows.request import ModelRequest
from roundel.workflows.run import Run


def sweep_request(
    request: ModelRequest,
    recipes: Sequence[Recipe],
    output: Path,
    device: torch.device,
    ranks: Ranks,
    options: WriteOptions,
) -> dict[str, dict[str, Any]]:
    """Quantize a model with every recipe, into a folder of its name below `output`; the manifests by that name.

    A recipe whose folder is there already, with this very model, recipe and calibration data, is left alone.

    Raises:
        RoundelError: bad input, or what a recipe raises; recipes that are finished stay.
    """
    names = [_folder_name(recipe) for recipe in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"{twice[0]} is given twice: recipes of different names are expected")
    if options.held_out is not None:
        check_text(options.held_out)
    manifests: dict[str, dict[str, Any]] = {}
    say, common = request.options.listener.say, Common()
    with ExitStack() as journals:
        if ranks.first and not output.exists():
            journals.callback(_leave_nothing_empty, output)
        runs: dict[str, Run] = {}
        for name, recipe in zip(names, recipes, strict=True):
            target = output / name
            # What an earlier sweep wrote is compared below.
            claim_target(target, request, options, ranks, may_be_finished=True)
            journal = journals.enter_context(Journal(target, ranks))
            run = open_run(request, recipe, device, journal, options, common)
            found = None if options.overwrite else _finished(run, target, ranks)
            if found is None:
                runs[name] = run
            else:
                say(f"{name} is there already")
                manifests[name] = found
                journal.remove()
        results = execute(list(runs.values()))
    manifests |= {name: result.manifest for name, result in zip(runs, results, strict=True)}
    return {name: manifests[name] for name in names}


def _finished(run: Run, target: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The manifest of an earlier sweep's output, if it is what this run would write; None if nothing is there.

    Raises:
        OutputError: something else is there.
    """
    if not ranks.broadcast_object((target / MANIFEST).is_file):
        return None
    _ = run.original, run.data  # found out by all ranks together
    found: dict[str, Any] = ranks.broadcast_object(lambda: _compared(run, target))
    return found


def _compared(run: Run, target: Path) -> dict[str, Any]:
    manifest = read_manifest(target)
    calibration = None if run.data is None else run.data.fingerprint
    same = {
        "model": manifest["original"]["fingerprint"] == run.original["fingerprint"],
        "recipe": manifest["recipe"] == run.recipe.model_dump(mode="json"),
        "calibration data": (manifest["calibration"] or {}).get("fingerprint") == calibration,
    }
    other = [what for what, equal in same.items() if not equal]
    if other:
        raise OutputError(
            f"{target} holds the result of another {other[0]}: choose another folder, or pass --overwrite"
        )
    return manifest


def _leave_nothing_empty(folder: Path) -> None:
    """Where no recipe came to an end, there is nothing to be left."""
    with suppress(OSError):
        folder.rmdir()


def _folder_name(recipe: Recipe) -> str:
    """A recipe's name as a folder's."""
    return "".join(c if c.isalnum() or c in "-_.+" else "-" for c in recipe.name).strip("-.") or "recipe"
