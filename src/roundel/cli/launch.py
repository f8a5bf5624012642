"""`--nproc`: the same command on several processes of this machine, started by torchrun."""

import logging
import os
import sys
from uuid import uuid4

import typer

from roundel.errors import RankError, RecipeError, Stopped
from roundel.system.torchrun import launched

# After Ctrl-C a step may take its time.
_STEP_SECONDS = 900


def on_ranks(count: int | None) -> None:
    """Run this very command on so many ranks, and leave with what they leave with.

    Returns where nothing is to be started: no number is given, or this process is one of those that were started.

    Raises:
        RankError: a rank was killed.
        RecipeError: there cannot be so many.
    """
    if count is None or launched():
        return
    if count < 1:
        raise RecipeError(f"--nproc {count}: 1 process or more is expected")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each its share of the cores: what torch would take for itself, times the ranks, would stand in its own way.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    logging.disable(logging.CRITICAL)  # torchrun's own reports: what there is to say is said below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        max_restarts=0,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
    )
    if hasattr(config, "shutdown_timeout"):  # earlier versions of torch have half a minute's patience
        config.shutdown_timeout = _STEP_SECONDS
    try:
        elastic_launch(config, sys.executable)("-m", "roundel", *sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise typer.Exit(failure.exitcode) from error  # it has said why
        raise RankError(
            f"rank {rank} was killed ({failure.signal_name()}), and the others were stopped; what was finished "
            "before is kept: the same command goes on from there"
        ) from error
    except SignalException as error:
        raise typer.Exit(
            Stopped.exit_code
        ) from error  # the ranks had the same signal, and have said what it did
    raise typer.Exit
