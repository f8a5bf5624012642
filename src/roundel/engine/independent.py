"""Blocks that do not depend on each other, each quantized by one of the ranks.

A round takes as many blocks as there are ranks. Each rank carries its own samples through all of them, unquantized,
into files that all ranks read; then it quantizes one of the blocks on all samples, by the same code as a process alone,
and writes its piece. A piece of a later block may be there before that of an earlier one: a process that goes on after
an interruption leaves it out, or (alone) does it again. What enters a block is on the disk before the first piece of
its round, so the block that comes next can always be begun.
"""

from dataclasses import dataclass, replace

import torch

from roundel.engine.block import BlockQuantizer
from roundel.engine.block_pass import stream_name
from roundel.engine.observations import ReferencePass
from roundel.engine.streams import Streams
from roundel.engine.walk import Walk, quantize_part
from roundel.system.ranks import ALONE


@dataclass(frozen=True)
class _Inputs:
    """What `ReferencePass` says of the inputs of a block's Linears, on the samples of all ranks."""

    tokens: dict[str, int]
    sizes: dict[str, torch.Tensor]


def walk_in_rounds(walk: Walk) -> None:
    """Finish all blocks; the walk has taken over what was finished before.

    Raises:
        NonFiniteError: NaN or infinity in weights, activations or losses.
        Stopped: the work was asked to end.
    """
    job, journal, ranks = walk.job, walk.journal, walk.ranks
    assert journal is not None
    count = len(walk.stack)
    alone = replace(job, home=replace(job.home, ranks=ALONE), ranks=ALONE)
    worker = BlockQuantizer(alone, walk.runner)
    while walk.finished < count:
        walk.check_stop()
        last = min(walk.finished + ranks.size, count)
        seen = _carry(walk, last) if walk.streams is not None else {}
        mine = walk.finished + ranks.number
        # Who fails lets the others finish what they are at: it is not lost.
        with ranks.raise_together():
            if mine < last and not journal.has(mine):
                _block(walk, worker, mine, seen.get(mine, _Inputs({}, {})))
        behind = journal.finished
        for index in range(walk.finished, behind):
            walk.parts.take_over(index)
            walk.discard_streams(index)
            job.progress.advance()
        walk.finished = behind
        if walk.streams is not None and behind > last:
            walk.find_streams()  # a piece of an earlier process came next


def _carry(walk: Walk, last: int) -> dict[int, _Inputs]:
    """This rank's samples through the blocks before `last`; of each what the Linears saw on all ranks."""
    assert walk.streams is not None
    assert walk.streams.original is not None
    stream, seen = walk.streams.original, {}
    observer = walk.worker.observer
    for index in range(walk.finished, last):
        block, name = walk.stack.blocks[index], walk.stack.block_name(index)
        walk.job.storage.load(block, name)
        reference = observer.prepared_reference(index, stream, statistics=False, hessians=False)
        stream, seen[index] = reference.outputs, _Inputs(reference.tokens, reference.sizes)
        walk.job.storage.release(block, name)
        walk.job.home.persist(stream_name("original", index + 1), stream)
    walk.streams = Streams(stream, None)
    return seen


def _block(walk: Walk, worker: BlockQuantizer, index: int, seen: _Inputs) -> None:
    """Quantize a block on the samples of all ranks, and write it to the journal, from which all take it over."""
    streams = reference = None
    if walk.streams is not None:
        shape, home = walk.streams.inputs.whole, worker.job.home
        entering = stream_name("original", index) if index else "first"
        streams = Streams(home.find(entering, shape), None)
        outputs = home.find(stream_name("original", index + 1), shape)
        reference = ReferencePass(outputs, seen.tokens, seen.sizes)
    _, part = quantize_part(worker, index, streams, reference)
    walk.parts.write(part)
    walk.job.storage.release(part.module, part.name)
