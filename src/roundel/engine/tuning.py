"""Tuning the Linears of one block: parametrizations at their starts, data, snapshots, and the trainer on all of it."""

import torch

from roundel.engine.block_pass import BlockPass
from roundel.engine.parametrize import make_parametrization
from roundel.engine.streams import Stream, Streams
from roundel.engine.target import Target
from roundel.engine.trainer import BlockData, tune
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.records.outcome import BlockRecord

# Distinct, reproducible seeds for the minibatches of every block.
_SEED_STRIDE = 1_000_003


def tune_block(
    passes: BlockPass,
    index: int,
    targets: list[Target],
    streams: Streams,
    outputs: Stream,
    record: BlockRecord,
) -> dict[str, QuantizedWeight]:
    """Tune a block's Linears jointly on its output.

    Args:
        passes: runs the blocks of a job.
        index: of the block.
        targets: its Linears, at their starts.
        streams: what enters the block.
        outputs: of the unquantized block on the original stream.
        record: gets the losses.

    Returns:
        The tuned integers by the Linears' names.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
        Stopped: the work was asked to end; a snapshot is written where there is a journal.
    """
    job, recipe = passes.job, passes.job.recipe
    generator = torch.Generator().manual_seed(recipe.seed * _SEED_STRIDE + index)
    parametrizations = {t.view.name: make_parametrization(t, recipe, generator) for t in targets}
    data = BlockData(
        record.name,
        lambda hidden: passes.run(index, hidden),
        streams.inputs,
        outputs,
        job.device,
        passes.amp or torch.float32,
        streams.original if recipe.input_mixing else None,
        job.ranks,
        streams.inputs.whole[0],
    )
    # What is done again in float32 does not go on with a snapshot of half precision.
    snapshots = job.snapshots(f"{index:05d}" + ("" if not record.note else "-float32"))

    def step_done(loss: float) -> None:
        job.progress.advance(note=f"loss {loss:.2e}")
        if snapshots is None:
            job.ranks.check_stop(job.progress.stop_asked)

    with job.progress.stage(record.name, recipe.iters), passes.activations_quantized():
        tuned = tune(
            data,
            {t.view.name: t.view for t in targets},
            {t.view.name: t.rounded for t in targets},
            parametrizations,
            recipe,
            generator,
            on_step=step_done,
            snapshots=snapshots,
        )
    record.loss_start, record.loss_end = tuned.loss_start, tuned.loss_end
    record.kept, record.curve = tuned.kept, tuned.curve
    record.trained = sum(p.trained for p in parametrizations.values())
    return tuned.weights
