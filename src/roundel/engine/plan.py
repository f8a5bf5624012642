"""What a run will need, before it runs: bytes of main memory and of disk, counted part by part.

Weights, streams, codes, parameters and gradients are known exactly from shapes and the recipe. What a block keeps of
one batch for its gradients depends on the model's own code: one sample is run, and the tensors that autograd saves are
counted. Time, and the peak that these parts come to in fact, are measured (trial.py).
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from roundel.calibration.options import CalibrationOptions
from roundel.engine.coverage import Coverage
from roundel.engine.observers import HESSIAN_BYTES
from roundel.engine.streams import StreamHome
from roundel.formats.shards import SHARD_BYTES
from roundel.methods.registry import METHODS
from roundel.model.blocks import BlockStack
from roundel.model.experts import Expert
from roundel.model.linears import LinearView, linears_in
from roundel.model.text_path import text_model
from roundel.recipe import Recipe
from roundel.system.devices import RETURNED_BYTES, kept_of_freed
from roundel.words import size

_FLOAT = 4
# Parts of a plan that its advice looks at.
_ITSELF, _STREAMS, _BATCH = "the process itself", "streams of activations", "activations of one batch"
_ON_ITS_WAY = "one Linear on its way"
_STAYING = ("weights around the blocks", "all blocks")
# Copies of the largest weight that a computation over all of it makes on its way.
_WEIGHT_COPIES = 3
# The same with error feedback: before, in columns, rounded so far, errors, and what is written.
_COLUMN_COPIES = 6
# What malloc cannot use of a block with many small experts, as shares of their weights: in 40 iterations and more,
# and in error feedback.
_GAPS_TUNED, _GAPS_GUIDED = 3.5, 1.0
# Copies of a window's logits while two models are compared, and the tokens of a window.
_LOGITS, _WINDOW = 6, 256
# Copies of the largest Hessian: permuted, damped and factorized, the factor.
_HESSIAN_COPIES = 3


@dataclass(frozen=True)
class Plan:
    """Bytes that a run needs.

    Attributes:
        memory: what is in main memory at the same time while blocks are quantized, part by part.
        output: of the folder that will be written.
        disk: of everything on the output's disk at the same time.
        free_memory, free_disk: at the moment.
        samples: of the calibration data.
        sampling: peak while the model writes its own calibration text; 0 where it does not.
        reading: peak while calibration text is read and tokenized; 0 where none is.
        checking: peak while the output is written, read back and measured.
        stream: bytes of one stream, a process's share of it.
        processes: that need as much memory each; the first of them alone samples, reads and checks.
    """

    memory: dict[str, int]
    output: int
    disk: int
    free_memory: int
    free_disk: int | None
    samples: int
    sampling: int = 0
    reading: int = 0
    checking: int = 0
    processes: int = 1
    stream: int = 0

    @property
    def peak(self) -> int:
        """Of main memory, of all processes together."""
        return max(self._coming, self.reading)

    @property
    def _coming(self) -> int:
        """The same without what was read before anything could be counted."""
        return max(self.processes * sum(self.memory.values()), self.sampling, self.checking)

    @property
    def words(self) -> str:
        """The plan in a line."""
        disk = "" if self.free_disk is None else f"; {size(self.disk)} on disk ({size(self.free_disk)} free)"
        whose = f" for {self.processes} processes" if self.processes > 1 else ""
        return f"Plan: about {size(self.peak)} of memory{whose} ({size(self.free_memory)} free){disk}"

    @property
    def disk_words(self) -> str:
        """What is said where the disk is too small."""
        return (
            f"the run needs {size(self.disk)} on the disk of its output (the output twice, and what resuming takes) "
            f"and {size(self.free_disk or 0)} are free: make room, or choose another disk"
        )

    @property
    def _room(self) -> int:
        return self.free_memory + self.processes * self.memory.get(_ITSELF, 0)

    @property
    def fits(self) -> bool:
        """Whether memory suffices at the moment."""
        return self._coming <= self._room

    @property
    def fits_without_streams(self) -> bool:
        """Whether it would with the streams in files."""
        return self._coming - self._streams <= self._room

    @property
    def _streams(self) -> int:
        return self.processes * self.memory.get(_STREAMS, 0)

    @property
    def advice(self) -> list[str]:
        """What to do where memory will not suffice."""
        if self.fits:
            return []
        room, streams = self._room, self._streams
        ways = []
        if streams and self.fits_without_streams:
            fitting = int(self.samples * (room - (self._coming - streams)) / streams)
            ways += ["--stream-to-disk float32", f"--nsamples {max(1, fitting)}"]
        if self.processes * self.memory.get(_BATCH, 0) > self._coming // 5:
            ways.append("--low-memory")
        if self.sampling > room:
            ways.append("--calibration FILE (to write its own text the model has to be in memory whole)")
        found = f"{self.samples} samples need" if self.samples else "The run needs"
        way = " or ".join(ways) or "a machine with more memory"
        return [f"{found} {size(self._coming)} of memory and {size(room)} are free: use {way}"]


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
    of_sample: int,
    of_batch: int,
    ranks: int = 1,
    processes: int = 1,
    independent: bool = False,
    extra: int = 0,
    reading: int = 0,
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
        of_sample: bytes that a block holds of every sample of a batch.
        of_batch: bytes that it holds whatever the batch.
        ranks: processes that share the samples.
        processes: those of them that are on this machine.
        independent: each of them quantizes blocks of its own, on all samples, which are in files.
        extra: bytes of tensors that are carried over from the checkpoint.
        reading: bytes that reading and tokenizing calibration text takes.
    """
    all_weights = _bytes(model)
    blocks = [_bytes(block) for block in stack.blocks]
    around = all_weights - sum(blocks)
    largest = largest_block(stack)
    largest_bytes = blocks[largest]
    views = [view for view in stack.linears(largest) if view.name in coverage.schemes]
    memory = {
        _ITSELF: resident,
        **dict(zip(_STAYING, (around, all_weights - around) if whole else (0, 0), strict=True)),
        "one block in float32": _FLOAT * _count(stack.blocks[largest]),
    }
    width = getattr(model.config.get_text_config(), "hidden_size", 0)
    stream = _FLOAT * recipe.nsamples * recipe.seqlen * width if recipe.needs_calibration else 0
    share = -(-stream // ranks)
    count = _stream_count(recipe) if stream else 0
    if stream and not (home.on_disk or independent) and home.device.type == "cpu":
        memory[_STREAMS] = count * share
    batch = min(recipe.batch_size, recipe.nsamples)
    if not independent:
        batch = -(-batch // ranks)
    step = {_BATCH: batch * of_sample, "weights in half precision": of_batch}
    memory |= _method_state(recipe, views, step)
    if home.device.type == "cpu":
        memory["freed and kept"] = kept_of_freed(sum(memory.values()) - resident)
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
    # The files and what they are decoded to; or what goes into one file, and its bytes.
    read_back = output + all_weights if checks_whole else 2 * min(output, SHARD_BYTES)
    # The result and the original, for the report: a block each, or all of it where that is how it was opened.
    measured = 0
    if measures:
        measured = 2 * (all_weights if whole else around + largest_bytes) + _LOGITS * _logits_bytes(model)
    checking = resident + max(around + read_back, measured) if target is not None else 0
    return Plan(
        memory={name: size for name, size in memory.items() if size},
        output=output,
        disk=disk,
        free_memory=free_memory(),
        free_disk=None if target is None else shutil.disk_usage(_existing(target)).free,
        samples=recipe.nsamples if stream else 0,
        processes=processes,
        stream=share,
        sampling=sampling,
        reading=resident + reading if reading else 0,
        checking=checking,
    )


def plan_together(plans: list[Plan], recipes: list[Recipe]) -> Plan:
    """The plan of several recipes that are done block by block in lockstep.

    Weights that stay are there once for each recipe, and so are streams of quantized blocks; a block's own work is that
    of one recipe at a time. Streams of the unquantized model count once for recipes with equal calibration options.
    """
    memory = dict(max(plans, key=lambda plan: sum(plan.memory.values())).memory)
    for part in (*_STAYING, _STREAMS):
        memory[part] = sum(plan.memory.get(part, 0) for plan in plans)
    if memory[_STREAMS]:
        memory[_STREAMS] = _streams_in_lockstep(plans, recipes)
    return replace(
        plans[0],
        memory={name: size for name, size in memory.items() if size},
        output=sum(plan.output for plan in plans),
        disk=sum(plan.disk for plan in plans),
        samples=max(plan.samples for plan in plans),
        sampling=max(plan.sampling for plan in plans),
        reading=max(plan.reading for plan in plans),
        checking=max(plan.checking for plan in plans),
    )


def _streams_in_lockstep(plans: list[Plan], recipes: list[Recipe]) -> int:
    """Between blocks: an original stream for each kind of data, a quantized one for each recipe; inside, outputs."""
    between: dict[object, int] = {}
    inside = 0
    for number, (plan, recipe) in enumerate(zip(plans, recipes, strict=True)):
        original, quantized = recipe.needs_original_stream, recipe.needs_quantized_stream
        if original:
            data = tuple(getattr(recipe, key) for key in CalibrationOptions.model_fields)
            between[data] = plan.stream
        if quantized:
            between[number] = plan.stream
        inside = max(inside, (original + quantized) * plan.stream)
    return sum(between.values()) + inside


def largest_block(stack: BlockStack) -> int:
    """Index of the block with the most weights: that with the experts, where the first have none."""
    return max(range(len(stack)), key=lambda index: _count(stack.blocks[index]))


def bytes_kept(run: Callable[[torch.Tensor], object], sample: torch.Tensor, block: nn.Module) -> list[int]:
    """Sizes of the tensors that autograd keeps of one sample for a block's gradients, its weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in block.parameters()}
    # Alive, so that no address is used twice. Memory alone, as below: tensors that the graph keeps and that hold the
    # graph themselves would keep each other for ever.
    seen: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage
        return tensor.detach()

    wanted = [(parameter, parameter.requires_grad) for parameter in block.parameters()]
    views = linears_in(block, "")
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        for view in views:
            view.want_gradient()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(sample)
    finally:
        for view in views:
            view.forget_gradient()
        for parameter, required in wanted:
            parameter.requires_grad_(required)
    return [storage.nbytes() for storage in seen.values()]


def free_memory() -> int:
    """Bytes of main memory that this process may still take, a control group's limit counted."""
    free: int = psutil.virtual_memory().available
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, max(0, int(Path(limit).read_text()) - int(Path(usage).read_text())))
        except (OSError, ValueError):
            continue  # no such group, or no limit
    return free


def _method_state(recipe: Recipe, views: list[LinearView], step: dict[str, int]) -> dict[str, int]:
    """What a method holds of a block, beside the block itself; `step` is what one step of tuning takes."""
    shapes = [view.shape for view in views]
    weights = sum(out * width for out, width in shapes)
    largest = max((out * width for out, width in shapes), default=0)
    # Without tuning, what a Linear was goes when the next one comes.
    state = {"codes": weights}
    if recipe.tuned:
        state["weights before"] = _FLOAT * weights
    # Error feedback comes first, tuning after it.
    stages: list[dict[str, int]] = []
    if recipe.hessian_guided:
        stages.append({**_hessians(views), _ON_ITS_WAY: _COLUMN_COPIES * _FLOAT * largest})
    if recipe.tuned or not stages:
        learned = _learned_state(recipe, shapes, weights) if recipe.tuned else {}
        stages.append({**learned, **step, _ON_ITS_WAY: _WEIGHT_COPIES * _FLOAT * largest})
    if len(stages) > 1:
        state["compensated weights"] = _FLOAT * weights
    stages.sort(key=lambda stage: sum(stage.values()))
    state |= stages[-1]
    state["gaps between experts"] = _gaps(recipe, views)
    return state


def _gaps(recipe: Recipe, views: list[LinearView]) -> int:
    """Between the many tensors that come and go of a block whose experts are small: as measured."""
    sizes = [_FLOAT * view.parameter.numel() for view in views if isinstance(view.module, Expert)]
    share = _GAPS_TUNED if recipe.tuned else _GAPS_GUIDED if recipe.hessian_guided else 0.0
    return int(share * sum(size for size in sizes if size < RETURNED_BYTES))


def _hessians(views: list[LinearView]) -> dict[str, int]:
    """Each expert has its own; they are collected in stages where they are many."""
    experts = [view.shape[1] for view in views if isinstance(view.module, Expert)]
    shapes = [view.shape for view in views if not isinstance(view.module, Expert)]
    inputs = sum(width**2 for width in {width for _, width in shapes}) + _more_inputs(shapes)
    inputs += sum(width**2 for width in experts)
    widest = max((view.shape[1] for view in views), default=0)
    largest = _FLOAT * widest**2
    return {"Hessians": max(min(_FLOAT * inputs, HESSIAN_BYTES), largest) + _HESSIAN_COPIES * largest}


def _more_inputs(shapes: list[tuple[int, int]]) -> int:
    """Hessians beyond one of each width: q, k, v share one, and so do gate and up, but o has its own."""
    widths = [width for _, width in shapes]
    narrow = min(widths, default=0)
    return 2 * narrow**2 if widths.count(narrow) > 2 else 0


def _learned_state(recipe: Recipe, shapes: list[tuple[int, int]], weights: int) -> dict[str, int]:
    """Parameters, their gradients and the optimizer's moments; what is computed on the way from them."""
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
    return {
        "parameters and optimizer": _FLOAT * entries * (1 + moments),
        "gradients": _FLOAT * max(weights, entries),
        "divisors": kept * weights,
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
        if recipe.target_bits is not None:
            bits = recipe.target_bits * out * width
        packed += int(bits) // 8
        if recipe.format != "dense":
            size -= view.parameter.numel() * view.parameter.element_size()
    return size + packed


def _logits_bytes(model: Any) -> int:
    """Of a window of the report."""
    head = text_model(model).get_output_embeddings()
    vocabulary = 0 if head is None else len(head.weight)
    return _FLOAT * _WINDOW * vocabulary


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _count(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in [*module.parameters(), *module.buffers()])


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path if os.access(path, os.R_OK) else Path("/")
