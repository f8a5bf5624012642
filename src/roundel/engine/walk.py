"""A walk over the blocks, step by step: load one, quantize it, write down what it has become, let it go, pass the
activations on. Each block that is written down is finished for good: the next walk with the same journal begins behind.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch

from roundel.activations.scheme import StaticGrid
from roundel.engine.block import BlockQuantizer, ReferencePass, stream_name
from roundel.engine.job import Job, make_runner
from roundel.engine.keeper import TuningKeeper
from roundel.engine.streams import Stream, StreamHome, Streams
from roundel.errors import Stopped
from roundel.formats.content import Piece
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.capture import BlockRunner
from roundel.model.experts import stacks_in, unquantized
from roundel.model.linears import LinearView
from roundel.records.layer_stats import LayerDetails
from roundel.records.outcome import BlockRecord, LayerRecord, Outcome
from roundel.system.devices import return_freed_memory
from roundel.system.memory import begin_part, part_peak
from roundel.system.ranks import Ranks


class Walk:
    """A walk under way.

    Attributes:
        finished: blocks, and the head, that are done.
        streams: what enters the next block.
    """

    def __init__(self, job: Job) -> None:
        self.finished = 0
        self.job, self.stack, self.journal, self.ranks = job, job.stack, job.journal, job.ranks
        # Ranks that quantize blocks of their own meet in files.
        self.home = replace(job.home, on_disk=True) if job.independent else job.home
        self.outcome = Outcome([], job.coverage.layers)
        self.streams: Streams | None = None
        self.runner = None
        if job.tokens is not None:
            self.runner = make_runner(job, job.tokens[self.ranks.own(len(job.tokens))], job.activations)
        self.worker = self.make_worker(self.home, self.ranks)

    def make_worker(self, home: StreamHome, ranks: Ranks) -> BlockQuantizer:
        """What quantizes blocks of this job, with these streams and together with these ranks."""
        job = self.job

        def keeper(attempt: str) -> TuningKeeper | None:
            if job.journal is None:
                return None
            path = job.journal.folder / f"tuning-{attempt}.safetensors"
            return TuningKeeper(path, job.model, job.progress, job.snapshot_seconds, ranks)

        return BlockQuantizer(
            job.stack,
            job.coverage,
            job.recipe,
            job.device,
            job.progress,
            home,
            self.runner,
            job.activations,
            job.storage,
            keeper,
            ranks,
        )

    def resume(self) -> None:
        """Take over what the journal holds, and get ready for the rest."""
        finished = self.finished = 0 if self.journal is None else self.journal.finished
        if self.journal is not None and not self.job.independent and self.ranks.first:
            self.journal.discard_pieces(finished)
        for number in range(finished):
            self.take_over(number)
        if finished:
            self.job.progress.say(f"Going on behind {self._done(finished)}")
        if self.runner is not None and finished < self.parts:
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
        # Later, these passes would be counted by whoever watches a block's inputs.
        for count in self._batch_sizes(size, len(job.tokens)):
            runner.prepare(count)
        if not first:
            job.storage.release(block, name)
            return
        stream, row = None, 0
        for hidden in runner.first_inputs(size):
            stream = stream or self.home.make("first", (len(job.tokens), *hidden.shape[1:]))
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
            return self.home.find(stream_name(name, index), (shape[0], shape[1], shape[2]))

        with self.ranks.agreed():
            self.streams = Streams(
                find("original") if recipe.needs_original_stream else None,
                find("quantized") if recipe.needs_quantized_stream else None,
            )

    @property
    def parts(self) -> int:
        """Blocks, and the head where it is quantized."""
        return len(self.stack) + (self.job.coverage.head is not None)

    def check_stop(self) -> None:
        """Between blocks.

        Raises:
            Stopped: the work was asked to end.
        """
        self.ranks.check_stop(self.job.progress.stop_asked)

    def look(self, *, statistics: bool, hessians: bool) -> ReferencePass:
        """What there is to know of the next block before it is quantized, for several walks on the same stream."""
        assert self.streams is not None
        assert self.streams.original is not None
        index = self.finished
        self.job.storage.load(self.stack.blocks[index], self.stack.block_name(index))
        return self.worker.look(index, self.streams.original, statistics=statistics, hessians=hessians)

    def block(self, known: ReferencePass | None = None) -> None:
        """Quantize the next block, all ranks together.

        Raises:
            NonFiniteError: NaN or infinity in weights, activations or losses.
            Stopped: the work was asked to end.
        """
        self.check_stop()
        began = time.perf_counter()
        begin_part()
        index = self.finished
        job, block, name = self.job, self.stack.blocks[index], self.stack.block_name(index)
        job.storage.load(block, name)
        done = self.worker.quantize(index, self.streams, known)
        self.streams = done.streams
        done.record.seconds = time.perf_counter() - began
        done.record.peak_bytes = part_peak()
        self.outcome.blocks.append(done.record)
        self._finish(index, name, block, done.weights, done.record)
        self.finished += 1
        if not job.keep:
            job.storage.release(block, name)
        if job.device.type == "cpu":
            return_freed_memory()

    def head(self) -> None:
        """What comes behind the blocks: the head, where it is to be quantized and not done yet."""
        view = self.job.coverage.head
        if view is not None and self.finished <= len(self.stack):
            self.check_stop()
            with self.job.storage.around(self.job.model, self.stack):
                weights = self.worker.head(view, self.streams)
                self._finish(len(self.stack), view.name, view.module, weights, None)
            self.finished += 1
        if self.job.activations is not None:
            self.job.activations.enabled = True

    def _finish(
        self,
        number: int,
        name: str,
        module: torch.nn.Module,
        weights: dict[str, QuantizedWeight],
        record: BlockRecord | None,
    ) -> None:
        """Write down what a part of the model has become."""
        if self.job.keep:
            self.outcome.weights |= weights
        if self.journal is None:
            return
        last = number + 1 == self.parts
        streams = {} if self.streams is None or last else self.streams.present
        for kind, stream in streams.items():
            self.home.keep(stream_name(kind, number + 1), stream)
        with self.ranks.agreed():
            if self.ranks.first:
                self.commit(number, name, module, weights, record)
        self.discard_streams(number)

    def commit(
        self,
        number: int,
        name: str,
        module: torch.nn.Module,
        weights: dict[str, QuantizedWeight],
        record: BlockRecord | None,
    ) -> None:
        """Write a piece."""
        assert self.journal is not None
        state = {f"{name}.{key}": tensor.detach() for key, tensor in module.state_dict().items()}
        others = {
            key: tensor.cpu().contiguous()
            for key, tensor in unquantized(state, stacks_in(module, name), weights).items()
        }
        activations = self.job.activations
        note = {
            "block": None if record is None else asdict(record),
            "layers": [
                asdict(layer)
                for layer in self.worker.records.values()
                if layer.name in weights or layer.block == number
            ],
            "static": {
                layer: asdict(activations.static[layer])
                for layer in weights
                if activations is not None and layer in activations.static
            },
            "stream_shape": None if self.streams is None else self.streams.inputs.whole,
        }
        self.journal.commit(number, self.job.model, Piece(weights, others), note)
        self.journal.discard_snapshots(number)

    def discard_streams(self, number: int) -> None:
        """The block that they entered is finished."""
        for gone in ("first", stream_name("original", number), stream_name("quantized", number)):
            self.home.discard(gone)

    def take_over(self, number: int) -> None:
        """Report, and where it is kept use, a piece that an earlier process finished."""
        assert self.journal is not None
        note = self.journal.note(number)
        if note["block"] is not None:
            self.outcome.blocks.append(BlockRecord(**note["block"]))
        for layer in note["layers"]:
            details = layer.pop("details", None)
            for key, value in asdict(LayerRecord(**layer)).items():
                if key != "shape":
                    setattr(self.worker.records[layer["name"]], key, value)
            if details is not None:
                self.worker.records[layer["name"]].details = LayerDetails.read(details)
        if self.job.activations is not None:
            self.job.activations.static |= {n: StaticGrid(**grid) for n, grid in note["static"].items()}
        if not self.job.keep:
            return
        piece = self.journal.piece(number)
        self.outcome.weights |= piece.weights
        for name, weight in piece.weights.items():
            LinearView(name, self.job.model.get_submodule(name)).write(weight.dequantize())
        own = self.job.model.state_dict()
        for name, tensor in piece.others.items():
            if name in own:
                own[name].copy_(tensor)
            else:  # an expert that was left out, of a stack with others that were not
                expert = name.removesuffix(".weight")
                LinearView(expert, self.job.model.get_submodule(expert)).write(tensor)

    @property
    def stop_message(self) -> str:
        """How far it is, for whoever asked it to end."""
        if self.journal is None:
            return "stopped; nothing was written"
        return f"stopped behind {self._done(self.journal.finished)}; the same command goes on from here"

    def _done(self, finished: int) -> str:
        return f"{min(finished, len(self.stack))} finished blocks of {len(self.stack)}"


@contextmanager
def saying(stop_message: Callable[[], str]) -> Iterator[None]:
    """Whoever asked the work to end is told how far it is."""
    try:
        yield
    except Stopped as stopped:
        told = Stopped(stop_message())
        told.everywhere = stopped.everywhere
        raise told from stopped
