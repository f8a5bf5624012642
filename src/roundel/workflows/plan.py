"""What a run will need, found out as the run itself would, and without writing anything."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from roundel.engine.plan import Plan
from roundel.engine.streams import StreamOptions
from roundel.engine.trial import Trial
from roundel.recipe import Recipe, Work
from roundel.workflows.costs import costs_of
from roundel.workflows.destination import Destination
from roundel.workflows.quantize import stream_device
from roundel.workflows.request import ModelRequest
from roundel.workflows.run import Run
from roundel.workflows.within import check_limit, keep_within


def plan_request(
    request: ModelRequest,
    recipe: Recipe,
    output: Path,
    device: torch.device,
    streams: StreamOptions,
    *,
    trial: bool,
    within: float | None = None,
) -> tuple[Plan, Trial | None]:
    """Bytes of memory and disk for a streamed run, that takes no longer than `within` seconds; and one block tried.

    Raises:
        RoundelError: as the run would before its work.
    """
    if within is not None:
        check_limit(recipe)
    with tempfile.TemporaryDirectory() as folder:
        home = streams.home(stream_device(recipe, device), Path(folder))
        run = Run(request, recipe, device, home, Destination(target=output, stream_with=Path(folder)))
        if within is not None:
            keep_within(run, within)
        run.leave_text_unwritten()
        _ = run.data
        spent = time.perf_counter() - run.began
        plan, tried = run.plan(trial)
        if tried is None:
            return plan, None
        samples = 0 if run.data is None else len(run.data.tokens)
        costs = costs_of(run, tried.times, spent, measured=True)
        return plan, replace(tried, seconds=costs.seconds(replace(Work.of(run.recipe), samples=samples)))
