"""One decoder block, or the head: observe its inputs, round, tune, write the weights back, pass the activations on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from roundel.engine.block_pass import BlockPass
from roundel.engine.finish import Chosen, QuantizedLinears, finish
from roundel.engine.job import Job
from roundel.engine.observations import Observations, Observer, ReferencePass
from roundel.engine.observers import InputSizes, InputStatistics
from roundel.engine.starts import Starts
from roundel.engine.streams import Stream, Streams, relative_error
from roundel.engine.target import Target, round_to_nearest, too_few
from roundel.engine.tuning import tune_block
from roundel.errors import NonFiniteError
from roundel.model.capture import BlockRunner
from roundel.model.linears import LinearView
from roundel.records.layer_stats import attention_heads
from roundel.records.outcome import BlockRecord, LayerRecord
from roundel.system.devices import computing

# Of a block with many experts no more than so many notes are said; the coverage table has them all.
_MOST_SAID = 2
# How much an error of a row that is looked up counts beside one of the same row in the head, where they are one: KL of
# either alone, on SmolLM2-135M at 8 bits.
_LOOKED_UP = 0.25


@dataclass
class QuantizedBlock:
    """A quantized block, and what enters the next one; None where nothing runs.

    Attributes:
        linears: integers, and what is to be reported of its Linears, those that stay as they are included.
        record: what is to be reported of the block.
        streams: its outputs.
    """

    linears: QuantizedLinears
    record: BlockRecord
    streams: Streams | None


class BlockQuantizer:
    """Quantizes decoder blocks, and the head, in place: their Linears end up with the dequantized weights.

    Args:
        job: model, recipe, and what they are worked on with.
        runner: runs blocks as the model does; None for a recipe without data.
    """

    def __init__(self, job: Job, runner: BlockRunner | None) -> None:
        self.job, self.stack, self.recipe = job, job.stack, job.recipe
        self.passes = BlockPass(job, runner)
        self.observer = Observer(self.passes)
        self.planned = {layer.name: layer for layer in job.coverage.layers}

    def quantize(
        self, index: int, streams: Streams | None, reference: ReferencePass | None = None
    ) -> QuantizedBlock:
        """Quantize a block; in float32 where the half precision does not hold it.

        Args:
            index: of the block.
            streams: what enters it; None where no data are read.
            reference: a pass of the unquantized block on the original stream, if there was one.

        Raises:
            NonFiniteError: NaN or infinity in weights, activations or losses, with the layer's name.
        """
        block, amp = self.stack.blocks[index], self.passes.amp
        for view in self.job.linears(index):
            _check_weight(view)
        if amp is None or streams is None:
            return self._quantize(index, streams, reference, "")
        restore = self.job.storage.saved(block, self.stack.block_name(index))
        try:
            return self._quantize(index, streams, reference, "")
        except NonFiniteError as error:
            half = str(amp).removeprefix("torch.")
            self.job.progress.say(f"{error}: the block is done again in float32")
            restore()
            with self.passes.in_float32():
                return self._quantize(index, streams, None, f"done in float32: not finite in {half}")

    def _quantize(
        self, index: int, streams: Streams | None, reference: ReferencePass | None, note: str
    ) -> QuantizedBlock:
        record = BlockRecord(self.stack.block_name(index), note=note)
        with computing(self.stack.blocks[index], self.job.device):
            if streams is None:
                seen = Observations()
                targets = Starts(self.observer, seen).to_nearest(self.job.linears(index), None)
                return QuantizedBlock(self._finish(_untuned(targets), seen), record, None)
            linears, original = self._with_data(index, streams, reference, record)
        inputs = streams.quantized
        if self.passes.amp is None:
            # Nothing will be done again: the block's inputs may go before its outputs come.
            streams.original = None
        quantized = None
        if inputs is not None:
            # Outside `computing` the written weights have the model's own type, as a client will load them.
            with computing(self.stack.blocks[index], self.job.device):
                quantized = self.passes.outputs("quantized", index, inputs, quantized=True)
        outputs = Streams(original, quantized)
        if self.recipe.block_loss:
            record.loss_end = relative_error(outputs, self.job.ranks)
        return QuantizedBlock(linears, record, outputs)

    def _with_data(
        self, index: int, streams: Streams, reference: ReferencePass | None, record: BlockRecord
    ) -> tuple[QuantizedLinears, Stream | None]:
        """Quantize a block; and its outputs on the original stream, where there is one."""
        views, seen, observer = self.job.linears(index), Observations(), self.observer
        if self.recipe.smooth is not None:
            inputs = streams.inputs if streams.original is None else streams.original
            seen.smoothing = observer.smooth(index, views, inputs)
        # The search is weighted with the unquantized model's inputs: they come free with the targets, and
        # their second moments hardly differ from the quantized stream's.
        watched = views if self.recipe.start == "search" else []
        if streams.original is not None:
            if reference is None:
                reference = observer.reference(index, streams.original, watched)
            else:
                reference = observer.completed(reference, index, streams.original, watched)
        if reference is not None:
            seen.add_reference(reference)
        if self.recipe.static_activations:
            observer.fix_ranges(views, lambda: self.passes.feed(index, streams.inputs))
        if self.recipe.keeps_outliers:
            shapes = {view.name: view.shape for view in self.stack.linears(index)}
            seen.heads = attention_heads(shapes, self.job.model.config)
        starts = Starts(observer, seen)
        if self.recipe.hessian_guided:
            targets = starts.by_block_hessians(index, views, streams, reference)
        else:
            targets = starts.to_nearest(views, None if reference is None else reference.statistics)
        outputs = None if reference is None else reference.outputs
        if self.recipe.tuned:
            assert outputs is not None
            chosen = self._tuned(index, list(targets), streams, outputs, record, seen)
        else:
            chosen = _untuned(targets)
        done = self._finish(chosen, seen)
        for view in self.stack.linears(index):  # those that stay as they are were counted, too
            if view.name not in done.records and view.name in seen.tokens:
                done.records[view.name] = replace(self.planned[view.name], tokens=seen.tokens[view.name])
        return done, outputs

    def _tuned(
        self,
        index: int,
        targets: list[Target],
        streams: Streams,
        outputs: Stream,
        record: BlockRecord,
        seen: Observations,
    ) -> Chosen:
        """Tune those Linears that saw enough; the others are in the block as they start, and remain so."""
        learning = []
        for target in targets:
            missing = too_few(seen.tokens[target.view.name], target.view, self.recipe)
            if missing:
                target.note = target.note or f"not tuned: {missing}"
                target.view.write(target.rounded.dequantize())
            else:
                learning.append(target)
        tuned = tune_block(self.passes, index, learning, streams, outputs, record) if learning else {}
        return ((target, tuned.get(target.view.name, target.rounded)) for target in targets)

    def head(self, view: LinearView, streams: Streams | None) -> QuantizedLinears:
        """The output head: as the blocks' Linears with its own inputs where there are data, but never tuned."""
        _check_weight(view)
        seen, recipe, ranks = Observations(), self.recipe, self.job.ranks
        starts = Starts(self.observer, seen)

        def feed() -> None:
            assert streams is not None
            self.passes.feed_head(view, streams.inputs)

        with computing(view.module, self.job.device):
            if recipe.static_activations:
                self.observer.fix_ranges([view], feed)
            if recipe.hessian_guided:
                return self._finish(_untuned(starts.by_stage([view], [[view]], [view], feed)), seen)
            watched = [view] if recipe.start == "search" else []
            with InputStatistics(watched) as statistics, InputSizes(watched) as sizes:
                if streams is not None and watched:
                    feed()
            statistics.reduce(ranks)
            seen.add_sizes(sizes, ranks, [watched] if watched else [])
            seen.tokens |= {name: diagonal.tokens for name, diagonal in statistics.diagonals.items()}
            return self._finish(_untuned(starts.to_nearest([view], statistics)), seen)

    def embedding(self, view: LinearView, streams: Streams | None) -> QuantizedLinears:
        """The input embedding, rounded to nearest.

        Rows are problems of their own, so how often a token occurs changes no row's grid. Where the head has the same
        weight, errors count as the head's inputs are large, and evenly for the rows that are looked up.
        """
        _check_weight(view)
        seen, head, diagonal = Observations(), self.job.coverage.tied_head, None
        if head is not None and streams is not None and self.recipe.grid_fit == "search":
            with InputStatistics([head]) as statistics:
                self.passes.feed_head(head, streams.inputs)
            statistics.reduce(self.job.ranks)
            diagonal = statistics.mean_of(head.name)
            if diagonal is not None:
                diagonal = diagonal + _LOOKED_UP * diagonal.mean()
        with computing(view.module, self.job.device):
            scheme = self.job.coverage.schemes[view.name]
            target = round_to_nearest(view, scheme, self.recipe.grid_fit, diagonal)
            return self._finish([(target, target.rounded)], seen)

    def _finish(self, chosen: Chosen, seen: Observations) -> QuantizedLinears:
        inputs = self.recipe.activations.inputs
        done = finish(chosen, self.planned, seen, inputs.summary if inputs else "")
        self._say_notes(done.records.values())
        return done

    def _say_notes(self, records: Iterable[LayerRecord]) -> None:
        """What was done otherwise than asked."""
        notes = [f"{record.name}: {record.note}" for record in records if record.note]
        for note in notes[:_MOST_SAID]:
            self.job.progress.say(note)
        if len(notes) > _MOST_SAID:
            more = len(notes) - _MOST_SAID
            self.job.progress.say(f"{more} more Linears of this block have such a note: see roundel inspect")


def _untuned(targets: Iterable[Target]) -> Chosen:
    return ((target, target.rounded) for target in targets)


def _check_weight(view: LinearView) -> None:
    if not torch.isfinite(view.weight).all():
        raise NonFiniteError(f"the weight of {view.name} holds NaN or infinity: the source model is damaged")
