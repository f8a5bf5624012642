"""One decoder block: run it unquantized to get the targets, choose the grids, round, tune, write the weights back."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.engine.coverage import Coverage
from roundel.engine.inputs import (
    HESSIAN_BYTES,
    InputHessians,
    InputSizes,
    InputStatistics,
    TokenCounts,
    hessian_bytes,
    in_stages,
    sharing_inputs,
)
from roundel.engine.parametrize import make_parametrization
from roundel.engine.ranges import static_grids
from roundel.engine.smoothing import smooth_block
from roundel.engine.split import split
from roundel.engine.streams import Stream, StreamHome, Streams, batches, relative_error, run_all
from roundel.engine.targets import Target, round_by_hessian, round_to_nearest, too_few
from roundel.errors import NonFiniteError
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.methods.hessian import Hessian
from roundel.methods.tuner import BlockData, Keeper, tune
from roundel.model.blocks import BlockStack
from roundel.model.capture import BlockRunner
from roundel.model.linears import LinearView
from roundel.model.storage import Storage
from roundel.recipe import Recipe
from roundel.records.layer_stats import (
    Heads,
    LayerDetails,
    attention_heads,
    input_details,
    outlier_details,
    weight_details,
)
from roundel.records.outcome import BlockRecord, LayerRecord
from roundel.system.devices import autocast_dtype, autocasting, computing
from roundel.system.progress import Progress
from roundel.system.ranks import ALONE, Ranks

# Distinct, reproducible seeds for the minibatches of every block.
_SEED_STRIDE = 1_000_003
# Of a block with many experts no more than so many notes are said; the coverage table has them all.
_MOST_SAID = 2


@dataclass
class ReferencePass:
    """What is known of an unquantized block before it is quantized, because somebody else needed it too.

    Attributes:
        outputs: on the original stream.
        tokens: that each of its Linears saw of that stream.
        sizes: max|x|, `[in]`, of the inputs of its Linears that will be quantized, on that stream.
        statistics: of the inputs of its Linears on that stream, if they were collected.
        hessians: of the same inputs.
    """

    outputs: Stream
    tokens: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, torch.Tensor] = field(default_factory=dict)
    statistics: InputStatistics | None = None
    hessians: InputHessians | None = None


@dataclass
class QuantizedBlock:
    """A quantized block, and what enters the next one; None where nothing runs.

    Attributes:
        weights: the integers by full name, on the CPU.
        record: what is to be reported.
        streams: the block's outputs.
    """

    weights: dict[str, QuantizedWeight]
    record: BlockRecord
    streams: Streams | None


class BlockQuantizer:
    """Quantizes decoder blocks, and the head, in place: their Linears end up with the dequantized weights.

    Args:
        stack: the decoder blocks.
        coverage: the grid of each layer.
        recipe: method and options.
        device: where blocks compute.
        progress: told of every step.
        home: where streams are made.
        runner: runs blocks as the model does; None for a recipe without data.
        activations: attached to the model, where activations are quantized.
        storage: where the weights of blocks are.
        keeper_of: what remembers the tuning of a block, by the name of the attempt.
        ranks: that quantize every block together.
    """

    def __init__(
        self,
        stack: BlockStack,
        coverage: Coverage,
        recipe: Recipe,
        device: torch.device,
        progress: Progress,
        home: StreamHome,
        runner: BlockRunner | None,
        activations: ActivationQuantizer | None,
        storage: Storage,
        keeper_of: Callable[[str], Keeper | None],
        ranks: Ranks = ALONE,
    ) -> None:
        self.stack, self.coverage, self.recipe, self.device = stack, coverage, recipe, device
        self.progress, self.home, self.activations, self.keeper_of = progress, home, activations, keeper_of
        self._runner, self.storage, self.ranks = runner, storage, ranks
        self.amp = autocast_dtype(device, recipe.amp)
        self.records: dict[str, LayerRecord] = {layer.name: layer for layer in coverage.layers}
        self._notes: list[str] = []
        # Of the present block, for the report.
        self._sizes: dict[str, torch.Tensor] = {}
        self._heads: dict[str, Heads] = {}

    @property
    def runner(self) -> BlockRunner:
        """For recipes with data."""
        assert self._runner is not None
        return self._runner

    def quantize(
        self, index: int, streams: Streams | None, known: ReferencePass | None = None
    ) -> QuantizedBlock:
        """Quantize a block; in float32 where the half precision does not hold it.

        Args:
            index: of the block.
            streams: what enters it; None where no data are read.
            known: what is known of it already.

        Raises:
            NonFiniteError: NaN or infinity in weights, activations or losses, with the layer's name.
        """
        block = self.stack.blocks[index]
        for view in self._views(index):
            _check_weight(view)
        if self.amp is None or streams is None:
            return self._quantize(index, streams, known, "")
        restore = self.storage.saved(block, self.stack.block_name(index))
        try:
            return self._quantize(index, streams, known, "")
        except NonFiniteError as error:
            half = str(self.amp).removeprefix("torch.")
            self.progress.say(f"{error}: the block is done again in float32")
            restore()
            with self._in_float32():
                return self._quantize(index, streams, None, f"done in float32: not finite in {half}")

    def _quantize(
        self, index: int, streams: Streams | None, known: ReferencePass | None, note: str
    ) -> QuantizedBlock:
        record, self._notes = BlockRecord(self.stack.block_name(index), note=note), []
        views, self._sizes = self._views(index), {}
        with computing(self.stack.blocks[index], self.device):
            if streams is None:
                weights = self._finish_each(self._to_nearest(views, None))
                self._say_notes()
                return QuantizedBlock(weights, record, None)
            weights, original = self._with_data(index, views, streams, known, record)
        self._say_notes()
        inputs = streams.quantized
        if self.amp is None:
            # Nothing will be done again: the block's inputs may go before its outputs come.
            streams.original = None
        quantized = None
        if inputs is not None:
            # Outside `computing` the written weights have the model's own type, as a client will load them.
            with computing(self.stack.blocks[index], self.device):
                quantized = self._outputs("quantized", index, inputs, quantized=True)
        outputs = Streams(original, quantized)
        if self.recipe.block_loss:
            record.loss_end = relative_error(outputs, self.ranks)
        return QuantizedBlock(weights, record, outputs)

    def head(self, view: LinearView, streams: Streams | None) -> dict[str, QuantizedWeight]:
        """The output head: as the blocks' Linears with its own inputs where there are data, but never tuned."""
        _check_weight(view)
        weights = self._head(view, streams)
        self._say_notes()
        return weights

    def _head(self, view: LinearView, streams: Streams | None) -> dict[str, QuantizedWeight]:
        with computing(view.module, self.device):
            if self.recipe.static_activations:
                self._set_static([view], lambda: self._feed_head(view, streams))
            if self.recipe.hessian_guided:
                with InputHessians([[view]]) as hessians, InputSizes([view]) as sizes, self._active():
                    self._feed_head(view, streams)
                hessians.join(self.ranks)
                self._note_sizes(sizes)
                return self._finish_each(self._round([view], hessians))
            watched = [view] if self.recipe.start == "search" else []
            with InputStatistics(watched) as statistics, InputSizes(watched) as sizes:
                if streams is not None and watched:
                    self._feed_head(view, streams)
            statistics.join(self.ranks)
            self._note_sizes(sizes)
            if view.name in statistics.diagonals:
                self.records[view.name].tokens = statistics.diagonals[view.name].tokens
            return self._finish_each(self._to_nearest([view], statistics))

    def _feed_head(self, view: LinearView, streams: Streams | None) -> None:
        """Let whoever watches the head see its inputs; the head itself does not run."""
        assert streams is not None
        with self.ranks.agreed():
            for rows in batches(streams.inputs, self.recipe.batch_size):
                self.runner.inputs_of(view.module, streams.inputs[rows].to(self.runner.device))

    def look(self, index: int, original: Stream, *, statistics: bool, hessians: bool) -> ReferencePass:
        """Run an unquantized block on the original stream, for whoever quantizes it.

        Args:
            index: of the block.
            original: what enters it.
            statistics: collect the second moments of its Linears' inputs.
            hessians: collect all of them.

        Raises:
            NonFiniteError: NaN or infinity, in float32 too.
        """
        try:
            return self._look_at(index, original, statistics, hessians)
        except NonFiniteError:
            if self.amp is None:
                raise
            with self._in_float32():
                return self._look_at(index, original, statistics, hessians)

    def _look_at(self, index: int, original: Stream, statistics: bool, hessians: bool) -> ReferencePass:
        views = self._views(index)
        block = self.stack.blocks[index]
        with computing(block, self.device):
            sharing = self._sharing(index, views, original) if hessians else []
            if hessian_bytes(sharing) > HESSIAN_BYTES:
                sharing = []  # everybody collects them in stages, then
            with InputHessians(sharing) as collected:
                known = self._look(index, views if statistics else [], original)
            known.hessians = collected if sharing else None
            collected.join(self.ranks)
        return known

    def _look(self, index: int, watched: list[LinearView], original: Stream) -> ReferencePass:
        with (
            InputStatistics(watched) as statistics,
            TokenCounts(self.stack.linears(index)) as counts,
            InputSizes(self._views(index)) as sizes,
        ):
            outputs = self._outputs("original", index, original)
        statistics.join(self.ranks)
        counts.join(self.ranks)
        sizes.join(self.ranks)
        return ReferencePass(outputs, counts.seen, sizes.largest, statistics if watched else None)

    def _with_data(
        self,
        index: int,
        views: list[LinearView],
        streams: Streams,
        known: ReferencePass | None,
        record: BlockRecord,
    ) -> tuple[dict[str, QuantizedWeight], Stream | None]:
        """Quantize a block; its integers, and its outputs on the original stream, where there is one."""
        if self.recipe.smooth is not None:
            self._smooth(index, views, streams)
        # The search is weighted with the unquantized model's inputs: they come free with the targets, and
        # their second moments hardly differ from the quantized stream's.
        watched = views if self.recipe.start == "search" else []
        if known is None and streams.original is not None:
            known = self._look(index, watched, streams.original)
        elif known is not None and streams.original is not None:
            self._look_again(index, known, watched if known.statistics is None else [], streams.original)
        outputs = None if known is None else known.outputs
        if known is not None:
            self._sizes = known.sizes
            for name, tokens in known.tokens.items():
                self.records[name].tokens = tokens
        if self.recipe.static_activations:
            self._set_static(views, lambda: self._run_all(index, streams.inputs))
        if self.recipe.keeps_outliers:
            shapes = {view.name: view.shape for view in self.stack.linears(index)}
            self._heads = attention_heads(shapes, self.runner.model.config)
        if self.recipe.hessian_guided:
            targets = self._by_hessian(index, views, streams, known)
        else:
            targets = self._to_nearest(views, None if known is None else known.statistics)
        if not self.recipe.tuned:
            return self._finish_each(targets), outputs
        assert outputs is not None
        wanted = list(targets)
        learning = [target for target in wanted if self._saw_enough(target)]
        tuned = self._tune(index, learning, streams, outputs, record) if learning else {}
        weights: dict[str, QuantizedWeight] = {}
        for target in wanted:
            weights |= self._finish(target, tuned.get(target.view.name, target.rounded))
        return weights, outputs

    def _look_again(
        self, index: int, known: ReferencePass, watched: list[LinearView], original: Stream
    ) -> None:
        """See what was not seen of the unquantized block; sizes of inputs too, if they were others before smoothing."""
        smoothed = self._views(index) if self.recipe.smooth is not None else []
        if not watched and not smoothed:
            return
        with InputStatistics(watched) as statistics, InputSizes(smoothed) as sizes:
            self._run_all(index, original)
        if watched:
            statistics.join(self.ranks)
            known.statistics = statistics
        if smoothed:
            sizes.join(self.ranks)
            known.sizes = sizes.largest

    def _note_sizes(self, sizes: InputSizes, sharing: Iterable[list[LinearView]] | None = None) -> None:
        """Keep the sizes of inputs for the report; of Linears that share their input those of the first."""
        sizes.join(self.ranks)
        largest = sizes.largest
        for views in [[view] for view in sizes.linears] if sharing is None else sharing:
            if views[0].name in largest:
                self._sizes |= {view.name: largest[views[0].name] for view in views}

    def _saw_enough(self, target: Target) -> bool:
        """Whether there is something to tune a Linear on; else it is at its start in the block, and remains there."""
        tokens = self.records[target.view.name].tokens
        assert tokens is not None
        missing = too_few(tokens, target.view, self.recipe)
        if not missing:
            return True
        target.note = target.note or f"not tuned: {missing}"
        target.view.write(target.rounded.dequantize())
        return False

    def _smooth(self, index: int, views: list[LinearView], streams: Streams) -> None:
        assert self.recipe.smooth is not None
        inputs = streams.inputs if streams.original is None else streams.original
        sample = self._sample(inputs)
        said = smooth_block(
            self.stack.blocks[index],
            views,
            lambda: self.runner.run(index, sample),  # exact: no autocast
            lambda: self._run_all(index, inputs),
            self.recipe.smooth,
            self.ranks,
        )
        for name, words in said.items():
            self.records[name].smoothing = words

    def _set_static(self, views: list[LinearView], run_everything: Callable[[], object]) -> None:
        assert self.activations is not None
        self.activations.static |= static_grids(views, run_everything, self.recipe, self.ranks)

    def _by_hessian(
        self, index: int, views: list[LinearView], streams: Streams, known: ReferencePass | None
    ) -> Iterator[Target]:
        """Round with error feedback: one pass for all Linears, or several, each for some of their distinct inputs."""
        if self.shares_hessians(streams) and known is not None and known.hessians is not None:
            yield from self._round(views, known.hessians, Hessian.mean)
            return
        sharing = self._sharing(index, views, streams.inputs)
        for stage in in_stages(sharing, one_by_one=self.recipe.true_sequential):
            # Where the unquantized block was run, they are known.
            leaders = [views[0] for views in stage] if known is None else []
            with InputHessians(stage) as hessians, InputSizes(leaders) as sizes, self._active():
                self._run_all(index, streams.inputs)
            hessians.join(self.ranks)
            self._note_sizes(sizes, stage if leaders else [])
            yield from self._round(views, hessians)

    def shares_hessians(self, streams: Streams) -> bool:
        """Whether the Hessians by which a block is rounded are those of the original stream, before any rounding."""
        recipe = self.recipe
        plain = not recipe.true_sequential and not recipe.activations
        return recipe.hessian_guided and plain and streams.inputs is streams.original

    def _sharing(self, index: int, views: list[LinearView], inputs: Stream) -> list[list[LinearView]]:
        sample = self._sample(inputs)
        return sharing_inputs(lambda: self._run(index, sample), views)

    def _sample(self, inputs: Stream) -> torch.Tensor:
        """The first sample of all, on every rank: what is decided by it is decided alike."""
        first = {"sample": inputs[:1].cpu()} if self.ranks.first else None
        return self.ranks.spread(first)["sample"].to(self.device)

    def _round(
        self,
        views: list[LinearView],
        hessians: InputHessians,
        mean: Callable[[Hessian], torch.Tensor] = Hessian.take_mean,
    ) -> Iterator[Target]:
        """Round those Linears whose Hessians these are. The result is in the modules then: a later pass sees it."""
        by_name = {view.name: view for view in views}
        for sharing, hessian in zip(hessians.sharing, hessians.hessians, strict=True):
            moments = mean(hessian) if hessian.tokens else None
            for view in sharing:
                self.records[view.name].tokens = hessian.tokens

            def make(
                view: LinearView, hessian: Hessian = hessian, moments: torch.Tensor | None = moments
            ) -> Target:
                return round_by_hessian(view, self.coverage.schemes[view.name], hessian, moments, self.recipe)

            for target in self._split([by_name[view.name] for view in sharing], make):
                target.view.write(target.rounded.dequantize())
                yield target

    def _to_nearest(self, views: list[LinearView], statistics: InputStatistics | None) -> Iterator[Target]:
        schemes, kind = self.coverage.schemes, self.recipe.grid_fit
        return self._split(
            views,
            lambda view: round_to_nearest(
                view, schemes[view.name], kind, statistics.mean_of(view.name) if statistics else None
            ),
        )

    def _split(self, views: list[LinearView], make: Callable[[LinearView], Target]) -> Iterator[Target]:
        return split(views, make, self.coverage.schemes, self.ranks, bases=self.recipe.tuned)

    def _tune(
        self, index: int, targets: list[Target], streams: Streams, outputs: Stream, record: BlockRecord
    ) -> dict[str, QuantizedWeight]:
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * _SEED_STRIDE + index)
        parametrizations = {t.view.name: make_parametrization(t, recipe, generator) for t in targets}
        data = BlockData(
            record.name,
            lambda hidden: self._run(index, hidden),
            streams.inputs,
            outputs,
            self.device,
            streams.original if recipe.input_mixing else None,
            self.ranks,
            streams.inputs.whole[0],
        )
        keeper = self.keeper_of(f"{index:05d}" + ("" if not record.note else "-float32"))

        def step_done(loss: float) -> None:
            self.progress.advance(note=f"loss {loss:.2e}")
            if keeper is None:
                self.ranks.check_stop(self.progress.stop_asked)

        with self.progress.stage(record.name, recipe.iters), self._active():
            tuned = tune(
                data,
                {t.view.name: t.view for t in targets},
                {t.view.name: t.rounded for t in targets},
                parametrizations,
                recipe,
                generator,
                on_step=step_done,
                keeper=keeper,
            )
        record.loss_start, record.loss_end = tuned.loss_start, tuned.loss_end
        record.kept, record.curve = tuned.kept, tuned.curve
        record.trained = sum(p.trained for p in parametrizations.values())
        return tuned.weights

    def _finish_each(self, targets: Iterable[Target]) -> dict[str, QuantizedWeight]:
        """Those that are not tuned, one after the other: what a Linear was goes before the next one comes."""
        weights: dict[str, QuantizedWeight] = {}
        for target in targets:
            weights |= self._finish(target, target.rounded)
        return weights

    def _finish(self, target: Target, quantized: QuantizedWeight) -> dict[str, QuantizedWeight]:
        """Write a Linear's weight, and what is to be reported of it."""
        name = target.view.name
        dequantized = quantized.dequantize()
        target.view.write(dequantized)
        record, scheme = self.records[name], quantized.scheme
        record.bits, record.group_size, record.sym = scheme.bits, scheme.group_size, scheme.sym
        record.bits_per_weight = quantized.bits_per_weight()
        record.paper_bits = quantized.paper_bits()
        record.outliers, record.note = quantized.outlier_share, target.note
        inputs = self.recipe.activations.inputs
        record.inputs = inputs.words if inputs else ""
        if target.note:
            self._notes.append(f"{name}: {target.note}")
        power = target.weight.square().mean().clamp_min(1e-30)
        record.error = float((dequantized - target.weight).square().mean() / power)
        sizes = self._sizes.get(name)
        record.details = LayerDetails(
            weight_details(target.weight),
            None if sizes is None else input_details(sizes),
            outlier_details(quantized, self._heads.get(name)),
        )
        return {name: quantized.to(torch.device("cpu"))}

    def _say_notes(self) -> None:
        """What was done otherwise than asked."""
        notes, self._notes = self._notes, []
        for note in notes[:_MOST_SAID]:
            self.progress.say(note)
        if len(notes) > _MOST_SAID:
            self.progress.say(
                f"{len(notes) - _MOST_SAID} more Linears of this block have such a note: see roundel inspect"
            )

    def _views(self, index: int) -> list[LinearView]:
        return [v for v in self.stack.linears(index) if v.name in self.coverage.schemes]

    def _active(self) -> AbstractContextManager[None]:
        """Activations are quantized inside."""
        return self.activations.switched(on=True) if self.activations else nullcontext()

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        amp, self.amp = self.amp, None
        try:
            yield
        finally:
            self.amp = amp

    def _run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        with autocasting(self.device, self.amp):
            return self.runner.run(index, hidden)

    def _outputs(self, name: str, index: int, inputs: Stream, *, quantized: bool = False) -> Stream:
        """What a block makes of a whole stream; `quantized`: with the activations that it will have in service."""
        outputs = self.home.make(stream_name(name, index + 1), inputs.whole)
        with self._active() if quantized else nullcontext():
            self._run_all(index, inputs, outputs)
        return outputs

    def _run_all(self, index: int, inputs: Stream, outputs: Stream | None = None) -> None:
        """A block on a whole stream, for those who watch it, or for its outputs."""

        def run(hidden: torch.Tensor) -> torch.Tensor:
            self.progress.check_stop()
            return self._run(index, hidden)

        name = self.stack.block_name(index)
        with self.ranks.agreed():
            run_all(run, inputs, outputs, self.recipe.batch_size, self.device, name)


def stream_name(name: str, index: int) -> str:
    """Of what enters a block."""
    return f"{name}-{index:05d}"


def _check_weight(view: LinearView) -> None:
    if not torch.isfinite(view.weight).all():
        raise NonFiniteError(f"the weight of {view.name} holds NaN or infinity: the source model is damaged")
