"""Quantizing a model: one recipe, or several in lockstep, each into a folder of its own, or one in memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from roundel.engine.journal import Journal, remove_stale
from roundel.engine.plan import Plan, plan_together
from roundel.engine.quantize import quantize_models
from roundel.engine.streams import StreamHome, StreamOptions
from roundel.errors import OutputError, RecipeError, Stopped
from roundel.evaluation.windows import check_text
from roundel.formats.folder import check_target
from roundel.model.experts import rejoin
from roundel.recipe import Recipe
from roundel.records.manifest import MANIFEST
from roundel.system.ranks import Ranks
from roundel.workflows.common import Common
from roundel.workflows.destination import Destination, WriteOptions
from roundel.workflows.push import push_again, push_folder
from roundel.workflows.request import ModelRequest
from roundel.workflows.run import Quantized, Run
from roundel.workflows.within import check_limit, keep_within


def quantize_request(
    request: ModelRequest,
    recipe: Recipe,
    output: Path | None,
    device: torch.device,
    ranks: Ranks,
    options: WriteOptions,
) -> Quantized:
    """Quantize a model with one recipe, into a folder or in memory.

    Raises:
        RoundelError: bad input or a failed check; no output appears then.
    """
    if request.calibration is not None and not recipe.needs_calibration:
        raise RecipeError(
            f"the recipe {recipe.name} reads no calibration data and would ignore it; set start=search, or "
            "leave the calibration out"
        )
    if options.within is not None:
        check_limit(recipe)
    common = Common()
    if output is None:
        if options.streams != StreamOptions():
            raise RecipeError("activations go to the disk beside the output: give an output folder")
        home = StreamHome(stream_device(recipe, device), ranks=ranks)
        with ranks.raise_together():
            run = Run(request, recipe, device, home, Destination(options=options), common)
        if options.within is not None:
            keep_within(run, options.within)
        return execute([run])[0]
    if options.held_out is not None:
        check_text(options.held_out)
    claim_target(output, request, options, ranks)
    hub = options.hub
    try:
        with Journal(output, ranks) as journal:
            run = open_run(request, recipe, device, journal, options, common)
            if options.within is not None:
                keep_within(run, options.within)
            result = execute([run])[0]
        if hub is None:
            return result
        ranks.check_stop(request.options.listener.stop_asked)
    except Stopped as error:
        if hub is None or not (output / MANIFEST).is_file():
            raise
        raise Stopped(f"{error}; it was not uploaded: `{push_again(output, hub)}` does it") from error
    address = ranks.broadcast_object(lambda: push_folder(output, hub, request.options.listener))
    return replace(result, uploaded=address)


def claim_target(
    target: Path,
    request: ModelRequest,
    options: WriteOptions,
    ranks: Ranks,
    *,
    may_be_finished: bool = False,
) -> None:
    """See that a folder may be written, and remove what broken-off runs left beside it; by the first rank.

    Args:
        target: the folder.
        request: the model, which must not be in it.
        options: whether it may be replaced.
        ranks: that learn of an error together.
        may_be_finished: what Roundel wrote there is not in the way: it may be the result.

    Raises:
        OutputError: it may not be written.
    """
    with ranks.raise_together():
        if ranks.first:
            remove_stale(target, request.options.listener.say)
            # Looked at now: a broken-off run may just have left its result there.
            finished = may_be_finished and not options.overwrite and (target / MANIFEST).is_file()
            check_target(target, options.overwrite, request.path, vacant=not finished)


def open_run(
    request: ModelRequest,
    recipe: Recipe,
    device: torch.device,
    journal: Journal,
    options: WriteOptions,
    common: Common,
) -> Run:
    """A run into the folder of a journal.

    Raises:
        RoundelError: bad input, found before the work.
    """
    ranks = journal.ranks
    home = options.streams.home(stream_device(recipe, device), journal.folder, ranks)
    with ranks.raise_together():
        return Run(request, recipe, device, home, Destination.folder(journal, options), common)


def execute(runs: Sequence[Run]) -> list[Quantized]:
    """Do runs on one model, block by block in lockstep where they are several.

    Raises:
        RoundelError: what a run raises ends all of them; those that are finished stay.
    """
    try:
        return _execute(runs) if runs else []
    except BaseException:
        for run in runs:
            rejoin(run.model)  # which may be the caller's
        raise


def _execute(runs: Sequence[Run]) -> list[Quantized]:
    lockstep, ranks, progress = len(runs) > 1, runs[0].ranks, runs[0].progress
    for run in runs:
        run.begin()
    plan = _plan(runs, lockstep)
    undecided = runs[0].destination.journal and runs[0].destination.options.streams.on_disk is None
    if ranks.broadcast_object(lambda: bool(undecided) and not plan.fits and plan.fits_without_streams):
        for run in runs:
            run.keep_streams_in_files()
        plan = _plan(runs, lockstep)
    progress.say(plan.summary)
    with ranks.raise_together():
        if plan.free_disk is not None and plan.disk > plan.free_disk:
            raise OutputError(plan.disk_shortage)
    for advice in plan.advice:
        progress.say(advice)
    results = []
    with ExitStack() as ready:
        jobs = [ready.enter_context(run.ready(lockstep=lockstep)) for run in runs]
        outcomes = quantize_models(jobs, progress)
        for run, job, outcome in zip(runs, jobs, outcomes, strict=True):
            results.append(run.finish(job, outcome, plan))
            if job.journal is not None:
                job.journal.remove()
    for run, result in zip(runs, results, strict=True):
        run.mark(result.manifest)
    return results


def _plan(runs: Sequence[Run], lockstep: bool) -> Plan:
    plans = [run.count(lockstep=lockstep) for run in runs]
    return plan_together(plans, [run.recipe for run in runs]) if lockstep else plans[0]


def stream_device(recipe: Recipe, device: torch.device) -> torch.device:
    """Where streams in memory are."""
    return torch.device("cpu") if recipe.low_gpu_mem_usage else device
