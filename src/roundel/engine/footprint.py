"""What a block holds of calibration samples while it runs: the tensors that autograd saves of one are counted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from roundel.engine.job import Job, make_runner
from roundel.model.blocks import BlockStack
from roundel.model.linears import linears_in
from roundel.system.devices import autocast_dtype, autocasting, computing


@dataclass(frozen=True)
class ActivationFootprint:
    """Bytes that a block holds while it runs.

    Attributes:
        sample: of every sample of a batch.
        once: whatever the batch: weights in half precision.
    """

    sample: int
    once: int


def bytes_of_batch(job: Job) -> ActivationFootprint:
    """What a block holds of calibration samples: what gradients need, or, without, a few tensors."""
    assert job.tokens is not None
    block, name = job.stack.blocks[0], job.stack.block_name(0)
    runner = make_runner(job, job.tokens[:1], None)
    amp = autocast_dtype(job.device, job.recipe.amp)
    job.storage.load(block, name)
    with job.storage.around(job.model, job.stack):
        hidden = next(runner.first_inputs(1)).float()
        for rows in (1, 2):
            runner.prepare(rows)
    # What enters the first block will do for any.
    index = largest_block(job.stack)
    if index:
        job.storage.release(block, name)
        block, name = job.stack.blocks[index], job.stack.block_name(index)
        job.storage.load(block, name)

    def run(sample: torch.Tensor) -> object:
        with autocasting(job.device, amp):
            return runner.run(index, sample)

    with computing(block, job.device):
        one, two = (bytes_kept(run, hidden.to(job.device).repeat(rows, 1, 1), block) for rows in (1, 2))
    job.storage.release(block, name)
    if not job.recipe.tuned:
        return ActivationFootprint(3 * (max(two, default=0) - max(one, default=0)), 0)
    sample = sum(two) - sum(one)
    return ActivationFootprint(sample, max(0, sum(one) - sample))


def largest_block(stack: BlockStack) -> int:
    """Index of the block with the most weights: that with the experts, where the first have none."""
    return max(range(len(stack)), key=lambda index: count_numbers(stack.blocks[index]))


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


def count_numbers(module: nn.Module) -> int:
    """Of its parameters and buffers."""
    return sum(tensor.numel() for tensor in [*module.parameters(), *module.buffers()])
