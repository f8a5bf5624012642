"""What a run will need, found out as the run itself would, and without writing anything."""

import tempfile
from pathlib import Path

import torch

from roundel.engine.plan import Plan
from roundel.engine.streams import StreamOptions
from roundel.engine.trial import Trial
from roundel.recipe import Recipe
from roundel.workflows.destination import Destination
from roundel.workflows.quantize import stream_device
from roundel.workflows.request import ModelRequest
from roundel.workflows.run import Run


def plan_request(
    request: ModelRequest,
    recipe: Recipe,
    output: Path,
    device: torch.device,
    streams: StreamOptions,
    *,
    trial: bool,
) -> tuple[Plan, Trial | None]:
    """Bytes of memory and disk for a streamed run; and one block tried.

    Raises:
        RoundelError: as the run would before its work.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = streams.home(stream_device(recipe, device), Path(folder))
        run = Run(request, recipe, device, home, Destination(target=output, stream_with=Path(folder)))
        return run.plan(trial)
