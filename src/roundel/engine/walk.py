"""A walk over the blocks, step by step: load one, quantize it, commit what it has become, release it, pass the
activations on. A committed block is finished: the next walk with the same journal begins after it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from roundel.engine.block import BlockQuantizer, QuantizedBlock
from roundel.engine.block_pass import stream_name
from roundel.engine.job import Job, make_runner
from roundel.engine.observations import ReferencePass
from roundel.engine.outside import OutsideQuantizer
from roundel.engine.parts import FinishedParts, Part
from roundel.engine.streams import Stream, Streams
from roundel.errors import Stopped
from roundel.model.capture import BlockRunner
from roundel.system.devices import return_freed_memory
from roundel.system.memory import begin_part, part_peak


class Walk:
    """A walk under way.

    Attributes:
        finished: blocks, and what is quantized outside of them, that are done.
        streams: what enters the next block.
    """

    def __init__(self, job: Job) -> None:
        if job.independent:
            # Ranks that quantize blocks of their own meet in files.
            job = replace(job, home=replace(job.home, on_disk=True))
        self.finished = 0
        self.job, self.stack, self.journal, self.ranks = job, job.stack, job.journal, job.ranks
        self.parts = FinishedParts(job)
        self.streams: Streams | None = None
        self.runner = None
        if job.tokens is not None:
            self.runner = make_runner(job, job.tokens[self.ranks.own(len(job.tokens))], job.activations)
        self.worker = BlockQuantizer(job, self.runner)

    def resume(self) -> None:
        """Take over what the journal holds, and get ready for the rest."""
        finished = self.finished = 0 if self.journal is None else self.journal.finished
        if self.journal is not None and not self.job.independent and self.ranks.first:
            self.journal.discard_pieces(finished)
        for number in range(finished):
            self.parts.take_over(number)
        if finished:
            self.job.progress.say(f"Going on after {self._done(finished)}")
        if self.runner is not None and finished < self.count:
            with self.job.storage.around(self.job.model, self.stack):
                self._prepare(self.runner, first=finished == 0)
            if finished:
                self.find_streams()

    def _prepare(self, runner: BlockRunner, first: bool) -> None:
        """Record the arguments of all blocks, and what enters the first one."""
        job, size = self.job, self.job.recipe.batch_size
        assert job.tokens is not None
        block, name = self.stack.blocks[0], self.stack.block_name(0)
        job.storage.load(block, name)
        # Later, these passes would be counted by the observers of a block's inputs.
        for count in self._batch_sizes(size, len(job.tokens)):
            runner.prepare(count)
        if not first:
            job.storage.release(block, name)
            return
        stream, row = None, 0
        for hidden in runner.first_inputs(size):
            stream = stream or self.job.home.make("first", (len(job.tokens), *hidden.shape[1:]))
            stream[row : row + len(hidden)] = hidden
            row += len(hidden)
        assert stream is not None
        original, quantized = job.recipe.needs_original_stream, job.recipe.needs_quantized_stream
        self.streams = Streams(stream if original else None, stream if quantized else None)

    def _batch_sizes(self, size: int, count: int) -> set[int]:
        """Of all passes that this rank will make: over its share, over all where it works alone, in training."""
        samples = {len(self.ranks.own(count)), count if self.job.independent else 1}
        sizes = {1, len(self.ranks.own(min(size, count)))}
        for number in samples:
            sizes |= {min(size, number), number % size}
        return sizes - {0}

    def find_streams(self) -> None:
        """What enters the next block was kept by an earlier process, or by other ranks."""
        assert self.journal is not None
        index = self.finished
        shape = self.journal.note(index - 1)["stream_shape"]
        recipe = self.job.recipe

        def find(name: str) -> Stream:
            return self.job.home.find(stream_name(name, index), (shape[0], shape[1], shape[2]))

        with self.ranks.raise_together():
            self.streams = Streams(
                find("original") if recipe.needs_original_stream else None,
                find("quantized") if recipe.needs_quantized_stream else None,
            )

    @property
    def count(self) -> int:
        """Parts: blocks, and the head and the embedding where they are quantized."""
        return len(self.stack) + len(self.job.coverage.outside)

    def check_stop(self) -> None:
        """Between blocks.

        Raises:
            Stopped: the work was asked to end.
        """
        self.ranks.check_stop(self.job.progress.stop_asked)

    def reference(self, *, statistics: bool, hessians: bool) -> ReferencePass:
        """A pass of the next block before it is quantized, for several walks on the same stream."""
        assert self.streams is not None
        assert self.streams.original is not None
        index = self.finished
        self.job.storage.load(self.stack.blocks[index], self.stack.block_name(index))
        observer, original = self.worker.observer, self.streams.original
        return observer.prepared_reference(index, original, statistics=statistics, hessians=hessians)

    def block(self, reference: ReferencePass | None = None) -> None:
        """Quantize the next block, all ranks together.

        Raises:
            NonFiniteError: NaN or infinity in weights, activations or losses.
            Stopped: the work was asked to end.
        """
        self.check_stop()
        index = self.finished
        done, part = quantize_part(self.worker, index, self.streams, reference)
        self.streams = done.streams
        self._finish(part)
        if not self.job.keeps_weights:
            self.job.storage.release(part.module, part.name)
        if self.job.device.type == "cpu":
            return_freed_memory()

    def outside(self) -> None:
        """The output head and the embedding, where they are to be quantized and not done yet."""
        for number, view in enumerate(self.job.coverage.outside, len(self.stack)):
            if self.finished > number:
                continue
            self.check_stop()
            with self.job.storage.around(self.job.model, self.stack):
                linears = OutsideQuantizer(self.worker).quantize(view, self.streams)
                self._finish(Part(number, view.name, view.module, linears, None, self._shape))
        if self.job.activations is not None:
            self.job.activations.enabled = True

    @property
    def _shape(self) -> tuple[int, int, int] | None:
        return None if self.streams is None else self.streams.inputs.whole

    def _finish(self, part: Part) -> None:
        """Keep what a part of the model has become, and go on behind it."""
        self.parts.add(part)
        if self.journal is not None:
            last = part.number + 1 == self.count
            streams = {} if self.streams is None or last else self.streams.present
            for kind, stream in streams.items():
                self.job.home.persist(stream_name(kind, part.number + 1), stream)
            with self.ranks.raise_together():
                if self.ranks.first:
                    self.parts.write(part)
            self.discard_streams(part.number)
        self.finished += 1

    def discard_streams(self, number: int) -> None:
        """The block that they entered is finished."""
        for gone in ("first", stream_name("original", number), stream_name("quantized", number)):
            self.job.home.discard(gone)

    @property
    def stop_message(self) -> str:
        """How far the walk is, where it was asked to end."""
        if self.journal is None:
            return "stopped; nothing was written"
        return f"stopped after {self._done(self.journal.finished)}; the same command goes on from here"

    def _done(self, finished: int) -> str:
        return f"{min(finished, len(self.stack))} finished blocks of {len(self.stack)}"


def quantize_part(
    worker: BlockQuantizer,
    index: int,
    streams: Streams | None,
    reference: ReferencePass | None,
) -> tuple[QuantizedBlock, Part]:
    """Load a block, quantize it, and take the time and the memory that it takes."""
    job, began = worker.job, time.perf_counter()
    begin_part()
    block, name = job.stack.blocks[index], job.stack.block_name(index)
    job.storage.load(block, name)
    done = worker.quantize(index, streams, reference)
    done.record.seconds = time.perf_counter() - began
    done.record.peak_bytes = part_peak()
    shape = None if done.streams is None else done.streams.inputs.whole
    return done, Part(index, name, block, done.linears, done.record, shape)


@contextmanager
def saying(stop_message: Callable[[], str]) -> Iterator[None]:
    """A stop message that says how far the work is."""
    try:
        yield
    except Stopped as stopped:
        told = Stopped(stop_message())
        told.everywhere = stopped.everywhere
        raise told from stopped
