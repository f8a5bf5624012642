"""Several recipes on one model in one go: opened, planned and walked together, each with an output of its own."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from roundel.engine.journal import Journal, remove_stale
from roundel.engine.lockstep import quantize_in_lockstep
from roundel.engine.plan import Plan, plan_together
from roundel.engine.streams import StreamOptions
from roundel.errors import OutputError, RecipeError
from roundel.formats.folder import check_target
from roundel.model.place import Place
from roundel.recipe import Recipe
from roundel.records.manifest import MANIFEST, read_manifest
from roundel.system.progress import Progress
from roundel.system.ranks import Ranks
from roundel.workflows.open import ModelRequest
from roundel.workflows.quantize import OutputOptions, Run, stream_device, tell_plan


def sweep_model(
    given: ModelRequest,
    recipes: Sequence[Recipe],
    output: Path,
    device: torch.device,
    progress: Progress,
    ranks: Ranks,
    streams: StreamOptions,
    *,
    overwrite: bool,
    restart: bool,
    held_out: str | None,
) -> dict[str, dict[str, Any]]:
    """Quantize a model with every recipe, into a folder of its name below `output`; the manifests by that name.

    A recipe whose folder is there already, with this very model, recipe and calibration data, is left alone.

    Raises:
        RoundelError: bad input, or what a recipe raises; recipes that are finished stay.
    """
    names = [_folder_name(recipe) for recipe in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"{twice[0]} is given twice: recipes of different names are wanted")
    source = given.model.path if isinstance(given.model, Place) else None
    manifests: dict[str, dict[str, Any]] = {}
    with ExitStack() as journals:
        if ranks.first and not output.exists():
            journals.callback(_leave_nothing_empty, output)
        runs: dict[str, Run] = {}
        for name, recipe in zip(names, recipes, strict=True):
            target = output / name
            with ranks.agreed():
                if ranks.first:
                    remove_stale(target, progress.say)
                    # What an earlier sweep wrote is compared below.
                    done = not overwrite and (target / MANIFEST).is_file()
                    check_target(target, overwrite, source, vacant=not done)
            journal = journals.enter_context(Journal(target, ranks))
            home = streams.home(stream_device(recipe, device), journal.folder, ranks)
            writing = OutputOptions(journal, overwrite, restart, True, streams, held_out)
            with ranks.agreed():
                run = Run(given, recipe, device, progress, home, writing, lockstep=True)
            found = None if overwrite else _finished(run, target, ranks)
            if found is None:
                runs[name] = run
            else:
                progress.say(f"{name} is there already")
                manifests[name] = found
                journal.remove()
        manifests |= _do(runs, progress, ranks)
    return {name: manifests[name] for name in names}


def _do(runs: dict[str, Run], progress: Progress, ranks: Ranks) -> dict[str, dict[str, Any]]:
    if not runs:
        return {}
    for run in runs.values():
        run.begin()
    plan = _plan(list(runs.values()))
    if next(iter(runs.values())).prefers_files(plan):
        for run in runs.values():
            run.keep_streams_in_files()
        plan = _plan(list(runs.values()))
    tell_plan(plan, progress, ranks)
    manifests = {}
    with ExitStack() as jobs:
        ready = [jobs.enter_context(run.ready()) for run in runs.values()]
        outcomes = quantize_in_lockstep(ready, progress)
        for (name, run), job, outcome in zip(runs.items(), ready, outcomes, strict=True):
            manifests[name] = run.finish(job, outcome, plan).manifest
            job.journal.remove()  # type: ignore[union-attr]
    return manifests


def _plan(runs: list[Run]) -> Plan:
    return plan_together([run.count() for run in runs], [run.recipe for run in runs])


def _finished(run: Run, target: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The manifest of an earlier sweep's output, if it is what this run would write; None if nothing is there.

    Raises:
        OutputError: something else is there.
    """
    if not ranks.tell((target / MANIFEST).is_file):
        return None
    _ = run.original, run.data  # found out by all ranks together
    found: dict[str, Any] = ranks.tell(lambda: _compared(run, target))
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
