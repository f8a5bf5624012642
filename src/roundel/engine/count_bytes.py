"""A plan, counted part by part before the run.

Weights, streams, codes, parameters and gradients are known exactly from shapes and the recipe. What a block keeps of
one batch for its gradients depends on the model's own code: one sample is run, and the tensors that autograd saves are
counted (footprint.py). Time, and the peak that these parts come to in fact, are measured (trial.py).
"""

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from roundel.engine.coverage import Coverage
from roundel.engine.footprint import ActivationFootprint, count_numbers, largest_block
from roundel.engine.observers import HESSIAN_BYTES
from roundel.engine.plan import Plan, PlanPart
from roundel.engine.streams import StreamHome
from roundel.formats.shards import SHARD_BYTES
from roundel.grid.block_types import BLOCK_TYPES
from roundel.methods.registry import METHODS
from roundel.model.blocks import BlockStack
from roundel.model.experts import Expert
from roundel.model.linears import LinearView
from roundel.model.text_path import text_model
from roundel.recipe import Recipe
from roundel.system.devices import RETURNED_BYTES, kept_of_freed
from roundel.system.memory import free_memory

_FLOAT, _HALF = 4, 2
# Copies of the largest weight that a computation over all of it makes on its way.
_WEIGHT_COPIES = 3
# The same with error feedback: before, in columns, rounded so far, errors, and outliers.
_COLUMN_COPIES = 6
# What malloc cannot use of a block with many small experts, as shares of their weights: in 40 iterations and more,
# and in error feedback.
_GAPS_TUNED, _GAPS_GUIDED = 3.5, 1.0
# Copies of a window's logits while two models are compared, and the tokens of a window.
_LOGITS, _WINDOW = 6, 256
# Copies of the head or the embedding when it is rounded: before, after, on the way there; codes, statistics.
_OUTSIDE_COPIES, _OUTSIDE_CODES = 3, 1.25
# Copies of the largest Hessian: damped and factorized in place, the factor.
_HESSIAN_COPIES = 2


def make_plan(
    model: Any,
    stack: BlockStack,
    coverage: Coverage,
    recipe: Recipe,
    home: StreamHome,
    *,
    target: Path | None,
    whole: bool,
    writes_text: bool,
    checks_whole: bool,
    measures: bool,
    resident: int,
    footprint: ActivationFootprint,
    ranks: int = 1,
    processes: int = 1,
    independent: bool = False,
    extra: int = 0,
    reading: int = 0,
    source: int = 0,
) -> Plan:
    """Count.

    Args:
        model: names and shapes; tensors may be absent.
        stack: its decoder blocks.
        coverage: the grid of each layer.
        recipe: method and options.
        home: where streams are.
        target: the output folder, if there is one.
        whole: all blocks stay in memory.
        writes_text: the model writes its own calibration text.
        checks_whole: the output is checked by opening all of it; else a file and a Linear at a time.
        measures: the result is measured against the original.
        resident: bytes of the process before any weights.
        footprint: what a block holds while it runs.
        ranks: processes that share the samples.
        processes: those of them that are on this machine.
        independent: each of them quantizes blocks of its own, on all samples, which are in files.
        extra: bytes of tensors that are carried over from the checkpoint.
        reading: bytes that reading and tokenizing calibration text takes.
        source: bytes of the weight files that the model came from; 0: it came from none.
    """
    all_weights = _bytes(model)
    blocks = [_bytes(block) for block in stack.blocks]
    around = all_weights - sum(blocks)
    largest = largest_block(stack)
    largest_bytes = blocks[largest]
    views = [view for view in stack.linears(largest) if view.name in coverage.schemes]
    memory = {
        PlanPart.ITSELF: resident,
        PlanPart.AROUND: around if whole else 0,
        PlanPart.BLOCKS: all_weights - around if whole else 0,
        PlanPart.BLOCK: _FLOAT * count_numbers(stack.blocks[largest]),
    }
    width = getattr(model.config.get_text_config(), "hidden_size", 0)
    stream = _FLOAT * recipe.nsamples * recipe.seqlen * width if recipe.needs_calibration else 0
    share = -(-stream // ranks)
    count = _stream_count(recipe) if stream else 0
    if stream and not (home.on_disk or independent) and home.device.type == "cpu":
        memory[PlanPart.STREAMS] = count * share
    batch = min(recipe.batch_size, recipe.nsamples)
    if not independent:
        batch = -(-batch // ranks)
    step = {PlanPart.BATCH: batch * footprint.sample, PlanPart.HALVES: footprint.once}
    # Where several processes or passes sum gradients, they do it in float32.
    halves = footprint.once > 0 and recipe.gradient_accumulate_steps == 1 and (independent or ranks == 1)
    memory |= _method_state(recipe, views, memory[PlanPart.BLOCK], step, halves=halves)
    if home.device.type == "cpu":
        memory[PlanPart.FREED] = kept_of_freed(sum(memory.values()) - resident)
    output = _output_bytes(model, coverage, recipe) + extra
    kept = 0
    if target is not None and stream:
        if home.on_disk or independent:
            alive = ranks + 2 if independent else count
            kept = alive * stream * home.dtype.itemsize // _FLOAT
        else:
            kept = 2 * min(count, 2) * stream
    disk = 2 * output + kept if target is not None else 0
    sampling = resident + all_weights if writes_text else 0
    outside = 0
    if coverage.outside:
        numbers = max(view.parameter.numel() for view in coverage.outside)
        streams = memory.get(PlanPart.STREAMS, 0)
        loaded = all_weights if whole else around
        outside = resident + loaded + streams + int((_OUTSIDE_COPIES * _FLOAT + _OUTSIDE_CODES) * numbers)
    # The files and what they are decoded to; or what goes into one file, and its bytes.
    read_back = output + all_weights if checks_whole else 2 * min(output, SHARD_BYTES)
    # The result and the original, for the report: a block each, or all of it where that is how it was opened.
    measured = 0
    if measures:
        measured = 2 * (all_weights if whole else around + largest_bytes) + _LOGITS * _logits_bytes(model)
    checking = resident + max(around + read_back, measured) if target is not None else 0
    return Plan(
        memory={part: count for part, count in memory.items() if count},
        output=output,
        parameters=count_numbers(model),
        source=source,
        disk=disk,
        free_memory=free_memory(),
        free_disk=None if target is None else shutil.disk_usage(_existing(target)).free,
        samples=recipe.nsamples if stream else 0,
        processes=processes,
        stream=share,
        sampling=sampling,
        reading=resident + reading if reading else 0,
        outside=outside,
        checking=checking,
    )


def _method_state(
    recipe: Recipe, views: list[LinearView], block: int, step: dict[PlanPart, int], *, halves: bool
) -> dict[PlanPart, int]:
    """What a method holds of a block of so many bytes, the block included.

    `step` is what one step of tuning takes; `halves`: its weights are in half precision, and nowhere in float32.
    """
    shapes = [view.shape for view in views]
    weights = sum(out * width for out, width in shapes)
    largest = max((out * width for out, width in shapes), default=0)
    # Without tuning, what a Linear was goes when the next one comes.
    state = {PlanPart.CODES: weights}
    if recipe.tuned:
        state[PlanPart.BEFORE] = _FLOAT * weights
    # Error feedback comes first, tuning after it.
    stages: list[dict[PlanPart, int]] = []
    if recipe.hessian_guided:
        linear = {PlanPart.LINEAR: _COLUMN_COPIES * _FLOAT * largest}
        stages.append({PlanPart.BLOCK: block, **_hessians(views), **linear})
    if recipe.tuned or not stages:
        # An expert's weights stay in their stack.
        held = sum(view.parameter.numel() for view in views if not isinstance(view.module, Expert))
        held = held if recipe.tuned and halves else 0
        learned = _learned_state(recipe, shapes, weights, held) if recipe.tuned else {}
        linear = {PlanPart.LINEAR: _WEIGHT_COPIES * _FLOAT * largest}
        stages.append({PlanPart.BLOCK: block - _FLOAT * held, **learned, **step, **linear})
    if len(stages) > 1:
        state[PlanPart.COMPENSATED] = _FLOAT * weights
    stages.sort(key=lambda stage: sum(stage.values()))
    state |= stages[-1]
    state[PlanPart.GAPS] = _gaps(recipe, views)
    return state


def _gaps(recipe: Recipe, views: list[LinearView]) -> int:
    """Between the many tensors that come and go of a block whose experts are small: as measured."""
    sizes = [_FLOAT * view.parameter.numel() for view in views if isinstance(view.module, Expert)]
    share = _GAPS_TUNED if recipe.tuned else _GAPS_GUIDED if recipe.hessian_guided else 0.0
    return int(share * sum(size for size in sizes if size < RETURNED_BYTES))


def _hessians(views: list[LinearView]) -> dict[PlanPart, int]:
    """Each expert has its own; they are collected in stages where they are many."""
    experts = [view.shape[1] for view in views if isinstance(view.module, Expert)]
    shapes = [view.shape for view in views if not isinstance(view.module, Expert)]
    inputs = sum(width**2 for width in {width for _, width in shapes}) + _more_inputs(shapes)
    inputs += sum(width**2 for width in experts)
    widest = max((view.shape[1] for view in views), default=0)
    largest = _FLOAT * widest**2
    return {PlanPart.HESSIANS: max(min(_FLOAT * inputs, HESSIAN_BYTES), largest) + _HESSIAN_COPIES * largest}


def _more_inputs(shapes: list[tuple[int, int]]) -> int:
    """Hessians beyond one of each width: q, k, v share one, and so do gate and up, but o has its own."""
    widths = [width for _, width in shapes]
    narrow = min(widths, default=0)
    return 2 * narrow**2 if widths.count(narrow) > 2 else 0


def _learned_state(
    recipe: Recipe, shapes: list[tuple[int, int]], weights: int, held: int
) -> dict[PlanPart, int]:
    """Parameters, their gradients and the optimizer's moments; what is computed on the way from them.

    `held`: how many of the weights are in half precision, as their gradients are then.
    """
    entries = kept = 0
    if recipe.divides:
        kept = _FLOAT  # log D
        if METHODS[recipe.method].divisor == "low-rank":
            entries += sum(recipe.resolved_rank(shape) * sum(shape) for shape in shapes)
        else:
            entries += weights
    if not recipe.divides or recipe.offsets:
        entries += weights
    moments = 2 if recipe.optimizer == "adamw" else 0
    # Offsets alone take a signed step as soon as the gradient of their weight is there, and have none of their own.
    own = 0 if not recipe.divides and recipe.optimizer == "signsgd" else entries
    return {
        PlanPart.PARAMETERS: _FLOAT * entries * (1 + moments),
        PlanPart.GRADIENTS: max(_FLOAT * weights - _HALF * held, _FLOAT * own),
        PlanPart.DIVISORS: kept * weights,
    }


def _stream_count(recipe: Recipe) -> int:
    """Streams that are alive at the same time: a block's inputs, and its outputs."""
    if recipe.needs_original_stream and recipe.needs_quantized_stream:
        return 3
    return 2


def _output_bytes(model: Any, coverage: Coverage, recipe: Recipe) -> int:
    size = _bytes(model)
    packed = 0
    for name, scheme in coverage.schemes.items():
        view = LinearView(name, model.get_submodule(name))
        out, width = view.shape
        bits = scheme.stored_bits(out, width) + 32 * (recipe.outliers or 0.0) * out * width
        if recipe.target_bits is not None and view not in coverage.outside:
            bits = recipe.target_bits * out * width
        packed += int(bits) // 8
        if recipe.format != "dense":
            size -= view.parameter.numel() * view.parameter.element_size()
    for name, parameter in model.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in coverage.kept and layer not in coverage.schemes:
            # As it is in its own file.
            size -= parameter.numel() * parameter.element_size()
            packed += int(_bits_of_type(coverage.kept[layer]) * parameter.numel()) // 8
    return size + packed


def _bits_of_type(name: str) -> float:
    if name in BLOCK_TYPES:
        return BLOCK_TYPES[name].bits_per_weight
    return 32.0 if name == "f32" else 16.0


def _logits_bytes(model: Any) -> int:
    """Of a window of the report."""
    head = text_model(model).get_output_embeddings()
    vocabulary = 0 if head is None else len(head.weight)
    return _FLOAT * _WINDOW * vocabulary


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path if os.access(path, os.R_OK) else Path("/")
