"""One decoder block: observe its inputs, round, tune, write the weights back, pass the activations on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from roundel.engine.block_pass import BlockPass
from roundel.engine.finish import Chosen, Finisher, QuantizedLinears
from roundel.engine.job import Job
from roundel.engine.observations import Observations, Observer, ReferencePass
from roundel.engine.starts import Starts
from roundel.engine.streams import Stream, Streams, relative_error
from roundel.engine.target import Target, check_weight, too_few
from roundel.engine.tuning import tune_block
from roundel.errors import NonFiniteError
from roundel.model.capture import BlockRunner
from roundel.records.layer_stats import attention_heads
from roundel.records.outcome import BlockRecord
from roundel.system.devices import computing


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
    """Quantizes decoder blocks in place: their Linears end up with the dequantized weights.

    Args:
        job: model, recipe, and what they are worked on with.
        runner: runs blocks as the model does; None for a recipe without data.
    """

    def __init__(self, job: Job, runner: BlockRunner | None) -> None:
        self.job, self.stack, self.recipe = job, job.stack, job.recipe
        self.passes = BlockPass(job, runner)
        self.observer = Observer(self.passes)
        self.finisher = Finisher(job)

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
            check_weight(view)
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
                return QuantizedBlock(self.finisher.finish(_untuned(targets), seen), record, None)
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
        done = self.finisher.finish(chosen, seen)
        for view in self.stack.linears(index):  # those that stay as they are were counted, too
            if view.name not in done.records and view.name in seen.tokens:
                done.records[view.name] = replace(
                    self.finisher.planned[view.name], tokens=seen.tokens[view.name]
                )
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


def _untuned(targets: Iterable[Target]) -> Chosen:
    return ((target, target.rounded) for target in targets)
