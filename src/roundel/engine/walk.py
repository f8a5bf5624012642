"""The walk over the blocks: the whole of Roundel's work on one screen.

For each decoder block: run it unquantized to get the targets, choose the grids, round, tune, write the
dequantized weights back, pass the activations on.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.engine.coverage import Coverage
from roundel.engine.devices import autocast_dtype, computing, keep_freed_memory
from roundel.engine.inputs import InputHessians, InputStatistics, sharing_inputs
from roundel.engine.parametrize import make_parametrization
from roundel.engine.ranges import static_grids
from roundel.engine.smoothing import smooth_block
from roundel.engine.streams import Streams, relative_error, run_all
from roundel.engine.targets import Target, round_by_hessian, round_to_nearest
from roundel.errors import NonFiniteError
from roundel.grid import QuantizedWeight
from roundel.methods.tuner import BlockData, tune
from roundel.model.blocks import BlockStack
from roundel.model.capture import BlockRunner
from roundel.model.linears import LinearView
from roundel.progress import Progress
from roundel.recipe import Recipe
from roundel.report.records import BlockRecord, Outcome

# Distinct, reproducible seeds for the minibatches of every block.
_SEED_STRIDE = 1_000_003


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
        activations: attached to the model, where activations are quantized; left enabled.
    """

    model: Any
    stack: BlockStack
    coverage: Coverage
    recipe: Recipe
    tokens: torch.Tensor | None
    device: torch.device
    progress: Progress
    activations: ActivationQuantizer | None = None


def quantize_model(job: Job) -> Outcome:
    """Quantize a model in place: its Linears end up with the dequantized weights.

    Raises:
        NonFiniteError: NaN or infinity in weights, activations or losses, with the layer's name.
    """
    if job.device.type == "cpu":
        keep_freed_memory()
    walk = _Walk(job)
    with job.progress.stage("Quantizing blocks", len(job.stack)):
        for index in range(len(job.stack)):
            walk.block(index)
            job.progress.advance()
    if job.coverage.head is not None:
        walk.head(job.coverage.head)
    if job.activations is not None:
        job.activations.enabled = True
    return walk.outcome


class _Walk:
    def __init__(self, job: Job) -> None:
        self.stack, self.coverage, self.recipe = job.stack, job.coverage, job.recipe
        self.device, self.progress, self.activations = job.device, job.progress, job.activations
        self.amp = autocast_dtype(job.device, job.recipe.amp)
        self.outcome = Outcome({}, [], job.coverage.layers)
        self.records = {layer.name: layer for layer in job.coverage.layers}
        self.streams: Streams | None = None
        if job.tokens is not None:
            self.runner = self._make_runner(job.model, job.tokens)
            home = torch.device("cpu") if self.recipe.low_gpu_mem_usage else self.device
            first = self.runner.first_inputs(self.recipe.batch_size).float().to(home)
            # Later, these passes would be counted by whoever watches a block's inputs.
            for size in {1, *(len(rows) for rows in job.tokens.split(self.recipe.batch_size))}:
                self.runner.prepare(size)
            original, quantized = self.recipe.needs_original_stream, self.recipe.needs_quantized_stream
            self.streams = Streams(first if original else None, first if quantized else None)

    def _make_runner(self, model: Any, tokens: torch.Tensor) -> BlockRunner:
        if self.activations is None:
            return BlockRunner(model, self.stack, tokens)
        off = partial(self.activations.switched, on=False)
        make_cache = self.activations.cache if self.activations.kv else None
        return BlockRunner(model, self.stack, tokens, make_cache, off)

    def block(self, index: int) -> None:
        """Quantize a block; in float32 where the half precision does not hold it."""
        block = self.stack.blocks[index]
        for view in self._views(index):
            _check_weight(view)
        if self.amp is None or self.streams is None:
            self._block(index, "")
            return
        saved = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        try:
            self._block(index, "")
        except NonFiniteError as error:
            half = str(self.amp).removeprefix("torch.")
            self.progress.say(f"{error}: the block is done again in float32")
            block.load_state_dict(saved)
            with self._in_float32():
                self._block(index, f"done in float32: not finite in {half}")

    def _block(self, index: int, note: str) -> None:
        began = time.perf_counter()
        record = BlockRecord(self.stack.block_name(index), note=note)
        views, streams = self._views(index), self.streams
        with computing(self.stack.blocks[index], self.device):
            if streams is None:
                targets = self._to_nearest(views, None)
                self._finish(targets, {t.view.name: t.rounded for t in targets})
            else:
                original = self._block_with_data(index, views, streams, record)
        if streams is not None:
            quantized = streams.quantized
            if self.amp is None:
                # Nothing will be done again: the block's inputs may go before its outputs come.
                streams.original = original
            if quantized is not None:
                # Outside `computing` the written weights have the model's own type, as a client will load them.
                with computing(self.stack.blocks[index], self.device):
                    quantized = self._run_all(index, quantized, quantized=True)
            self.streams = Streams(original, quantized)
            if self.recipe.block_loss:
                record.loss_end = relative_error(self.streams)
        record.seconds = time.perf_counter() - began
        self.outcome.blocks.append(record)

    def head(self, view: LinearView) -> None:
        """The output head: as the blocks' Linears with its own inputs where there are data, but never tuned."""
        _check_weight(view)
        with computing(view.module, self.device):
            if self.recipe.static_activations:
                self._set_static([view], lambda: self._feed_head(view))
            if self.recipe.hessian_guided:
                with InputHessians([[view]]) as hessians, self._active():
                    self._feed_head(view)
                targets = round_by_hessian(hessians, self.coverage.schemes, self.recipe)
            else:
                with InputStatistics([view] if self.recipe.start == "search" else []) as statistics:
                    if self.streams is not None and self.recipe.start == "search":
                        self._feed_head(view)
                targets = self._to_nearest([view], statistics)
            self._finish(targets, {t.view.name: t.rounded for t in targets})

    def _feed_head(self, view: LinearView) -> None:
        """Let whoever watches the head see its inputs; the head itself does not run."""
        assert self.streams is not None
        for hidden in self.streams.inputs.split(self.recipe.batch_size):
            self.runner.inputs_of(view.module, hidden.to(self.runner.device))

    def _block_with_data(
        self, index: int, views: list[LinearView], streams: Streams, record: BlockRecord
    ) -> torch.Tensor | None:
        """Quantize a block; its outputs on the original stream, where there is one."""
        if self.recipe.smooth is not None:
            self._smooth(index, views, streams)
        outputs = None
        # The search is weighted with the unquantized model's inputs: they come free with the targets, and
        # their second moments hardly differ from the quantized stream's.
        with InputStatistics(views if self.recipe.start == "search" else []) as statistics:
            if streams.original is not None:
                outputs = self._run_all(index, streams.original)
        if self.recipe.static_activations:
            self._set_static(views, lambda: self._run_all(index, streams.inputs))
        if self.recipe.hessian_guided:
            targets = self._by_hessian(index, views, streams.inputs)
        else:
            targets = self._to_nearest(views, statistics)
        weights = {t.view.name: t.rounded for t in targets}
        if self.recipe.tuned and targets:
            assert outputs is not None
            weights = self._tune(index, targets, streams, outputs, record)
        self._finish(targets, weights)
        return outputs

    def _smooth(self, index: int, views: list[LinearView], streams: Streams) -> None:
        assert self.recipe.smooth is not None
        inputs = streams.inputs if streams.original is None else streams.original
        sample = inputs[:1].to(self.device)
        said = smooth_block(
            self.stack.blocks[index],
            views,
            lambda: self.runner.run(index, sample),  # exact: no autocast
            lambda: self._run_all(index, inputs),
            self.recipe.smooth,
        )
        for name, words in said.items():
            self.records[name].smoothing = words

    def _set_static(self, views: list[LinearView], run_everything: Callable[[], object]) -> None:
        assert self.activations is not None
        self.activations.static |= static_grids(views, run_everything, self.recipe)

    def _by_hessian(self, index: int, views: list[LinearView], inputs: torch.Tensor) -> list[Target]:
        """Round with error feedback: one pass for all Linears, or one for each distinct input in turn."""
        first = inputs[:1].to(self.device)
        sharing = sharing_inputs(lambda: self._run(index, first), views)
        targets = []
        for stage in [[group] for group in sharing] if self.recipe.true_sequential else [sharing]:
            with InputHessians(stage) as hessians:
                self._run_all(index, inputs, quantized=True)
            targets += round_by_hessian(hessians, self.coverage.schemes, self.recipe)
        return targets

    def _to_nearest(self, views: list[LinearView], statistics: InputStatistics | None) -> list[Target]:
        schemes, kind = self.coverage.schemes, self.recipe.grid_fit
        return [
            round_to_nearest(
                view, schemes[view.name], kind, statistics.mean_of(view.name) if statistics else None
            )
            for view in views
        ]

    def _tune(
        self, index: int, targets: list[Target], streams: Streams, outputs: torch.Tensor, record: BlockRecord
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
        )
        with self.progress.stage(record.name, recipe.iters), self._active():
            tuned = tune(
                data,
                {t.view.name: t.view for t in targets},
                {t.view.name: t.rounded for t in targets},
                parametrizations,
                recipe,
                generator,
                on_step=lambda loss: self.progress.advance(note=f"loss {loss:.2e}"),
            )
        record.loss_start, record.loss_end = tuned.loss_start, tuned.loss_end
        record.kept, record.curve = tuned.kept, tuned.curve
        record.trained = sum(p.trained for p in parametrizations.values())
        return tuned.weights

    def _finish(self, targets: list[Target], weights: dict[str, QuantizedWeight]) -> None:
        for target in targets:
            name, quantized = target.view.name, weights[target.view.name]
            dequantized = quantized.dequantize()
            target.view.write(dequantized)
            self.outcome.weights[name] = quantized.to(torch.device("cpu"))
            record, scheme = self.records[name], quantized.scheme
            record.bits, record.group_size, record.sym = scheme.bits, scheme.group_size, scheme.sym
            record.bits_per_weight = quantized.bits_per_weight()
            record.paper_bits = quantized.paper_bits()
            record.outliers, record.note = quantized.outlier_share, target.note
            inputs = self.recipe.activations.inputs
            record.inputs = inputs.words if inputs else ""
            if target.note:
                self.progress.say(f"{name}: {target.note}")
            power = target.weight.square().mean().clamp_min(1e-30)
            record.error = float((dequantized - target.weight).square().mean() / power)

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
        enabled = self.amp is not None
        with torch.autocast(self.device.type, dtype=self.amp, enabled=enabled):
            return self.runner.run(index, hidden)

    def _run_all(self, index: int, inputs: torch.Tensor, *, quantized: bool = False) -> torch.Tensor:
        """A block on a whole stream; `quantized`: with the activations that it will have in service."""
        name = self.stack.block_name(index)
        with self._active() if quantized else nullcontext():
            return run_all(
                lambda hidden: self._run(index, hidden), inputs, self.recipe.batch_size, self.device, name
            )


def _check_weight(view: LinearView) -> None:
    if not torch.isfinite(view.weight).all():
        raise NonFiniteError(f"the weight of {view.name} holds NaN or infinity: the source model is damaged")
