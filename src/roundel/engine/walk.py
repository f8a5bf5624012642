"""The walk over the blocks: the whole of Roundel's work on one screen.

For each decoder block: load it, quantize it, write down what it has become, let it go, pass the activations on. Each
block that is written down is finished for good: the next walk with the same journal begins behind it.
"""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.activations.scheme import StaticGrid
from roundel.engine.block import BlockQuantizer, stream_name
from roundel.engine.coverage import Coverage
from roundel.engine.devices import keep_freed_memory
from roundel.engine.journal import Journal
from roundel.engine.keeper import TuningKeeper
from roundel.engine.streams import StreamHome, Streams
from roundel.errors import Stopped
from roundel.formats.content import Piece
from roundel.grid import QuantizedWeight
from roundel.model.blocks import BlockStack
from roundel.model.capture import BlockRunner
from roundel.model.linears import LinearView
from roundel.model.storage import InMemory, Storage
from roundel.progress import Progress
from roundel.recipe import Recipe
from roundel.report.records import BlockRecord, LayerRecord, Outcome

# Inside a block, work of at most so many seconds is lost to an interruption.
SNAPSHOT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a walk needs.

    Attributes:
        model: causal language model in eval mode, on the CPU; changed in place.
        stack: its decoder blocks.
        coverage: the grid of each layer.
        recipe: method and options.
        tokens: `[N, S]` calibration ids; None for a recipe that needs none.
        device: where blocks compute.
        progress: told of every block and step.
        home: where activations between blocks are.
        storage: where the weights of blocks are.
        journal: remembers finished blocks; None: nothing outlives the process.
        keep: leave the quantized blocks, and their integers, in memory.
        activations: attached to the model, where activations are quantized; left enabled.
        snapshot_seconds: how often the state inside a block is written down.
    """

    model: Any
    stack: BlockStack
    coverage: Coverage
    recipe: Recipe
    tokens: torch.Tensor | None
    device: torch.device
    progress: Progress
    home: StreamHome
    storage: Storage = field(default_factory=InMemory)
    journal: Journal | None = None
    keep: bool = True
    activations: ActivationQuantizer | None = None
    snapshot_seconds: float = SNAPSHOT_SECONDS


def quantize_model(job: Job) -> Outcome:
    """Quantize a model in place: its Linears end up with the dequantized weights.

    Raises:
        NonFiniteError: NaN or infinity in weights, activations or losses, with the layer's name.
        Stopped: the work was asked to end.
    """
    if job.device.type == "cpu":
        keep_freed_memory()
    walk = _Walk(job)
    count = len(job.stack)
    with job.progress.stage("Quantizing blocks", count):
        finished = walk.resume()
        job.progress.advance(min(finished, count))
        try:
            for index in range(finished, count):
                job.progress.check_stop()
                walk.block(index)
                job.progress.advance()
            if job.coverage.head is not None and finished <= count:
                job.progress.check_stop()
                walk.head(job.coverage.head)
        except Stopped as stopped:
            raise Stopped(walk.farewell) from stopped
    if job.activations is not None:
        job.activations.enabled = True
    return walk.outcome


def make_runner(job: Job, tokens: torch.Tensor, activations: ActivationQuantizer | None) -> BlockRunner:
    """What runs the blocks of a job's model on some calibration tokens."""
    cache = activations.cache if activations is not None and activations.kv else None
    quiet = nullcontext if activations is None else partial(activations.switched, on=False)
    around = partial(job.storage.around, job.model, job.stack)
    return BlockRunner(job.model, job.stack, tokens, cache, quiet, around)


class _Walk:
    def __init__(self, job: Job) -> None:
        self.job, self.stack, self.journal = job, job.stack, job.journal
        self.outcome = Outcome([], job.coverage.layers)
        self.streams: Streams | None = None
        self.runner = None if job.tokens is None else make_runner(job, job.tokens, job.activations)
        self.worker = BlockQuantizer(
            job.stack,
            job.coverage,
            job.recipe,
            job.device,
            job.progress,
            job.home,
            self.runner,
            job.activations,
            job.storage,
            self._keeper,
        )

    def _keeper(self, attempt: str) -> TuningKeeper | None:
        if self.journal is None:
            return None
        path = self.journal.folder / f"tuning-{attempt}.safetensors"
        return TuningKeeper(path, self.job.model, self.job.progress, self.job.snapshot_seconds)

    def resume(self) -> int:
        """Take over what the journal holds; returns how many pieces are finished."""
        finished = 0 if self.journal is None else self.journal.finished
        for number in range(finished):
            self._take_over(number)
        if finished:
            self.job.progress.say(f"Going on behind {self._done(finished)}")
        if self.runner is not None and finished < self.parts:
            with self.job.storage.around(self.job.model, self.stack):
                self._prepare(self.runner, first=finished == 0)
            if finished:
                self.streams = self._find_streams(finished)
        return finished

    def _prepare(self, runner: BlockRunner, first: bool) -> None:
        """Record the arguments of all blocks, and what enters the first one."""
        job, size = self.job, self.job.recipe.batch_size
        assert job.tokens is not None
        block, name = self.stack.blocks[0], self.stack.block_name(0)
        job.storage.load(block, name)
        # Later, these passes would be counted by whoever watches a block's inputs.
        for count in {1, *(len(rows) for rows in job.tokens.split(size))}:
            runner.prepare(count)
        if not first:
            job.storage.release(block, name)
            return
        stream, row = None, 0
        for hidden in runner.first_inputs(size):
            stream = stream or job.home.make("first", (len(job.tokens), hidden.shape[1], hidden.shape[2]))
            stream[row : row + len(hidden)] = hidden
            row += len(hidden)
        original, quantized = job.recipe.needs_original_stream, job.recipe.needs_quantized_stream
        self.streams = Streams(stream if original else None, stream if quantized else None)

    def _find_streams(self, index: int) -> Streams:
        assert self.journal is not None
        shape = self.journal.note(index - 1)["stream_shape"]
        recipe, home = self.job.recipe, self.job.home

        def find(name: str) -> Any:
            return home.find(stream_name(name, index), (shape[0], shape[1], shape[2]))

        return Streams(
            find("original") if recipe.needs_original_stream else None,
            find("quantized") if recipe.needs_quantized_stream else None,
        )

    @property
    def parts(self) -> int:
        """Blocks, and the head where it is quantized."""
        return len(self.stack) + (self.job.coverage.head is not None)

    def block(self, index: int) -> None:
        began = time.perf_counter()
        job, block, name = self.job, self.stack.blocks[index], self.stack.block_name(index)
        job.storage.load(block, name)
        done = self.worker.quantize(index, self.streams)
        self.streams = done.streams
        done.record.seconds = time.perf_counter() - began
        self.outcome.blocks.append(done.record)
        self._finish(index, name, block, done.weights, done.record)
        if not job.keep:
            job.storage.release(block, name)

    def head(self, view: LinearView) -> None:
        with self.job.storage.around(self.job.model, self.stack):
            weights = self.worker.head(view, self.streams)
        self._finish(len(self.stack), view.name, view.module, weights, None)

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
            self.job.home.keep(stream_name(kind, number + 1), stream)
        others = {
            f"{name}.{key}": tensor.detach().cpu().contiguous()
            for key, tensor in module.state_dict().items()
            if f"{name}.{key}".removesuffix(".weight") not in weights
        }
        activations = self.job.activations
        note = {
            "block": None if record is None else asdict(record),
            "layers": [asdict(self.worker.records[layer]) for layer in weights],
            "static": {
                layer: asdict(activations.static[layer])
                for layer in weights
                if activations is not None and layer in activations.static
            },
            "stream_shape": next((stream.shape for stream in streams.values()), None),
        }
        self.journal.commit(number, self.job.model, Piece(weights, others), note)
        for gone in ("first", stream_name("original", number), stream_name("quantized", number)):
            self.job.home.discard(gone)
        self.journal.discard_snapshots()

    def _take_over(self, number: int) -> None:
        """Report, and where it is kept use, a piece that an earlier process finished."""
        assert self.journal is not None
        note = self.journal.note(number)
        if note["block"] is not None:
            self.outcome.blocks.append(BlockRecord(**note["block"]))
        for layer in note["layers"]:
            for key, value in asdict(LayerRecord(**layer)).items():
                if key != "shape":
                    setattr(self.worker.records[layer["name"]], key, value)
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
            own[name].copy_(tensor)

    @property
    def farewell(self) -> str:
        if self.journal is None:
            return "stopped; nothing was written"
        return f"stopped behind {self._done(self.journal.finished)}; the same command goes on from here"

    def _done(self, finished: int) -> str:
        return f"{min(finished, len(self.stack))} finished blocks of {len(self.stack)}"
