"""Blocks that do not depend on each other, each quantized by one of the ranks.

A round takes as many blocks as there are ranks. Each rank carries its own samples through all of them, unquantized,
into files that all ranks read; then it quantizes one of the blocks on all samples, by the same code as a process alone,
and writes its piece. A piece of a later block may be there before that of an earlier one: whoever goes on after an
interruption leaves it out, or (alone) does it again. What enters a block is on the disk before the first piece of its
round, so the block that comes next can always be begun.
"""

import time
from dataclasses import dataclass, replace

import torch

from roundel.engine.block import BlockQuantizer, ReferencePass, stream_name
from roundel.engine.streams import Streams
from roundel.engine.walk import Walk
from roundel.system.memory import begin_part, part_peak
from roundel.system.ranks import ALONE


@dataclass(frozen=True)
class _Seen:
    """What `ReferencePass` says of the inputs of a block's Linears."""

    tokens: dict[str, int]
    sizes: dict[str, torch.Tensor]


def walk_in_rounds(walk: Walk) -> None:
    """Finish all blocks; the walk has taken over what was finished before.

    Raises:
        NonFiniteError: NaN or infinity in weights, activations or losses.
        Stopped: the work was asked to end.
    """
    journal, ranks = walk.journal, walk.ranks
    assert journal is not None
    count = len(walk.stack)
    alone = walk.make_worker(replace(walk.home, ranks=ALONE), ALONE)
    while walk.finished < count:
        walk.check_stop()
        last = min(walk.finished + ranks.size, count)
        seen = _carry(walk, last) if walk.streams is not None else {}
        mine = walk.finished + ranks.number
        # Who fails lets the others finish what they are at: it is not lost.
        with ranks.agreed():
            if mine < last and not journal.has(mine):
                _block(walk, alone, mine, seen.get(mine, _Seen({}, {})))
        behind = journal.finished
        for index in range(walk.finished, behind):
            walk.take_over(index)
            walk.discard_streams(index)
            walk.job.progress.advance()
        walk.finished = behind
        if walk.streams is not None and behind > last:
            walk.find_streams()  # a piece of an earlier process came next


def _carry(walk: Walk, last: int) -> dict[int, _Seen]:
    """This rank's samples through the blocks before `last`; of each what the Linears saw on all ranks."""
    assert walk.streams is not None
    assert walk.streams.original is not None
    stream, seen = walk.streams.original, {}
    for index in range(walk.finished, last):
        block, name = walk.stack.blocks[index], walk.stack.block_name(index)
        walk.job.storage.load(block, name)
        known = walk.worker.look(index, stream, statistics=False, hessians=False)
        stream, seen[index] = known.outputs, _Seen(known.tokens, known.sizes)
        walk.job.storage.release(block, name)
        walk.home.keep(stream_name("original", index + 1), stream)
    walk.streams = Streams(stream, None)
    return seen


def _block(walk: Walk, worker: BlockQuantizer, index: int, seen: _Seen) -> None:
    """Quantize a block on the samples of all ranks."""
    began = time.perf_counter()
    begin_part()
    block, name = walk.stack.blocks[index], walk.stack.block_name(index)
    streams = known = None
    if walk.streams is not None:
        shape = walk.streams.inputs.whole
        entering = stream_name("original", index) if index else "first"
        streams = Streams(worker.home.find(entering, shape), None)
        known = ReferencePass(
            worker.home.find(stream_name("original", index + 1), shape), seen.tokens, seen.sizes
        )
    walk.job.storage.load(block, name)
    done = worker.quantize(index, streams, known)
    done.record.seconds = time.perf_counter() - began
    done.record.peak_bytes = part_peak()
    walk.commit(index, name, block, done.weights, done.record)
    walk.job.storage.release(block, name)
