"""The walk over the blocks: the whole of Roundel's work on one screen.

For each decoder block: run it unquantized to get the targets, choose the grids, round, tune, write the
dequantized weights back, pass the activations on.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from roundel.engine.coverage import Coverage
from roundel.engine.devices import autocast_dtype, computing, keep_freed_memory
from roundel.engine.inputs import InputHessians, InputStatistics, sharing_inputs
from roundel.engine.streams import Streams, relative_error, run_all
from roundel.engine.targets import Target, round_by_hessian, round_to_nearest
from roundel.errors import NonFiniteError
from roundel.grid import QuantizedWeight
from roundel.methods.signround import RoundingOffsets
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
    """

    model: Any
    stack: BlockStack
    coverage: Coverage
    recipe: Recipe
    tokens: torch.Tensor | None
    device: torch.device
    progress: Progress


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
    return walk.outcome


class _Walk:
    def __init__(self, job: Job) -> None:
        self.stack, self.coverage, self.recipe = job.stack, job.coverage, job.recipe
        self.device, self.progress = job.device, job.progress
        self.amp = autocast_dtype(job.device, job.recipe.amp)
        self.outcome = Outcome({}, [], job.coverage.layers)
        self.records = {layer.name: layer for layer in job.coverage.layers}
        self.streams: Streams | None = None
        if job.tokens is not None:
            self.runner = BlockRunner(job.model, job.stack, job.tokens)
            home = torch.device("cpu") if self.recipe.low_gpu_mem_usage else self.device
            first = self.runner.first_inputs(self.recipe.batch_size).float().to(home)
            # Later, these passes would be counted by whoever watches a block's inputs.
            for size in {1, *(len(rows) for rows in job.tokens.split(self.recipe.batch_size))}:
                self.runner.prepare(size)
            original, quantized = self.recipe.needs_original_stream, self.recipe.needs_quantized_stream
            self.streams = Streams(first if original else None, first if quantized else None)

    def block(self, index: int) -> None:
        began = time.perf_counter()
        record = BlockRecord(self.stack.block_name(index))
        views = [v for v in self.stack.linears(index) if v.name in self.coverage.schemes]
        for view in views:
            _check_weight(view)
        with computing(self.stack.blocks[index], self.device):
            if self.streams is None:
                targets = self._to_nearest(views, None)
                self._finish(targets, {t.view.name: t.rounded for t in targets})
            else:
                self._block_with_data(index, views, self.streams, record)
        # Outside `computing` the written weights have the model's own type, as a client will load them.
        if self.streams is not None and self.streams.quantized is not None:
            with computing(self.stack.blocks[index], self.device):
                self.streams.quantized = self._run_all(index, self.streams.quantized)
        if self.recipe.block_loss and self.streams is not None:
            record.loss_end = relative_error(self.streams)
        record.seconds = time.perf_counter() - began
        self.outcome.blocks.append(record)

    def head(self, view: LinearView) -> None:
        """The output head: as the blocks' Linears with its own inputs where there are data, but never tuned."""
        _check_weight(view)
        with computing(view.module, self.device):
            if self.recipe.hessian_guided:
                with InputHessians([[view]]) as hessians:
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
    ) -> None:
        outputs = None
        # The search is weighted with the unquantized model's inputs: they come free with the targets, and
        # their second moments hardly differ from the quantized stream's.
        with InputStatistics(views if self.recipe.start == "search" else []) as statistics:
            if streams.original is not None:
                outputs = self._run_all(index, streams.original)
        if self.recipe.hessian_guided:
            targets = self._by_hessian(index, views, streams.inputs)
        else:
            targets = self._to_nearest(views, statistics)
        weights = {t.view.name: t.rounded for t in targets}
        if self.recipe.tuned and targets:
            assert outputs is not None
            weights = self._tune(index, targets, streams, outputs, record)
        self._finish(targets, weights)
        streams.original = outputs

    def _by_hessian(self, index: int, views: list[LinearView], inputs: torch.Tensor) -> list[Target]:
        """Round with error feedback: one pass for all Linears, or one for each distinct input in turn."""
        first = inputs[:1].to(self.device)
        sharing = sharing_inputs(lambda: self._run(index, first), views)
        targets = []
        for stage in [[group] for group in sharing] if self.recipe.true_sequential else [sharing]:
            with InputHessians(stage) as hessians:
                self._run_all(index, inputs)
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
        data = BlockData(
            record.name, lambda hidden: self._run(index, hidden), streams.inputs, outputs, self.device
        )
        with self.progress.stage(record.name, recipe.iters):
            tuned = tune(
                data,
                {t.view.name: t.view for t in targets},
                {t.view.name: t.rounded for t in targets},
                {t.view.name: self._parametrize(t) for t in targets},
                recipe,
                generator,
                on_step=lambda loss: self.progress.advance(note=f"loss {loss:.2e}"),
            )
        record.loss_start, record.loss_end = tuned.loss_start, tuned.loss_end
        record.kept, record.curve = tuned.kept, tuned.curve
        return tuned.weights

    def _parametrize(self, target: Target) -> RoundingOffsets:
        recipe, scheme = self.recipe, target.rounded.scheme
        minmax_lr = recipe.resolved_minmax_lr(recipe.grid_fit == "search")
        return RoundingOffsets(
            target.base,
            target.start,
            scheme,
            lr=recipe.resolved_lr(scheme.bits),
            minmax_lr=minmax_lr if recipe.enable_minmax_tuning else None,
            minmax_limit=recipe.minmax_limit,
            outliers=target.rounded.outliers,
        )

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
            if target.note:
                self.progress.say(f"{name}: {target.note}")
            power = target.weight.square().mean().clamp_min(1e-30)
            record.error = float((dequantized - target.weight).square().mean() / power)

    def _run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        enabled = self.amp is not None
        with torch.autocast(self.device.type, dtype=self.amp, enabled=enabled):
            return self.runner.run(index, hidden)

    def _run_all(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        name = self.stack.block_name(index)
        return run_all(
            lambda hidden: self._run(index, hidden), inputs, self.recipe.batch_size, self.device, name
        )


def _check_weight(view: LinearView) -> None:
    if not torch.isfinite(view.weight).all():
        raise NonFiniteError(f"the weight of {view.name} holds NaN or infinity: the source model is damaged")
