"""Decoder blocks, and the head, on whole streams of activations: in batches, under autocast, as the model runs them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from roundel.engine.job import Job
from roundel.engine.streams import Stream, batches, run_all
from roundel.model.capture import BlockRunner
from roundel.model.linears import LinearView, multiplying_in
from roundel.system.devices import autocast_dtype, autocasting


class BlockPass:
    """Runs the blocks of a job.

    Args:
        job: the model, its blocks, and where they compute.
        runner: runs blocks as the model does; None for a recipe without data, whose blocks are never run.

    Attributes:
        amp: the autocast type; None: float32.
    """

    def __init__(self, job: Job, runner: BlockRunner | None) -> None:
        self.job, self._runner = job, runner
        self.amp = autocast_dtype(job.device, job.recipe.amp)

    @property
    def runner(self) -> BlockRunner:
        """For recipes with data."""
        assert self._runner is not None
        return self._runner

    def run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """A block on one batch `[B, S, H]`."""
        with autocasting(self.job.device, self.amp):
            return self.runner.run(index, hidden)

    def feed(self, index: int, inputs: Stream, outputs: Stream | None = None) -> None:
        """A block on a whole stream, for the hooks on its Linears, or for its outputs.

        Raises:
            NonFiniteError: an output is NaN or infinite.
            Stopped: the work was asked to end.
        """

        def run(hidden: torch.Tensor) -> torch.Tensor:
            self.job.progress.check_stop()
            return self.run(index, hidden)

        job, name = self.job, self.job.stack.block_name(index)
        half = nullcontext() if self.amp is None else multiplying_in(self.amp, job.linears(index))
        with job.ranks.raise_together(), half:
            run_all(run, inputs, outputs, job.recipe.batch_size, job.device, name)

    def feed_head(self, head: LinearView, inputs: Stream) -> None:
        """What lies between the blocks and the head, for the hooks on the head, which itself does not run."""
        with self.job.ranks.raise_together():
            for rows in batches(inputs, self.job.recipe.batch_size):
                self.runner.inputs_of(head.module, inputs[rows].to(self.runner.device))

    def outputs(self, kind: str, index: int, inputs: Stream, *, quantized: bool = False) -> Stream:
        """What a block makes of a whole stream; `quantized`: with the activations that it will have in service."""
        outputs = self.job.home.make(stream_name(kind, index + 1), inputs.whole)
        with self.activations_quantized() if quantized else nullcontext():
            self.feed(index, inputs, outputs)
        return outputs

    def sample(self, inputs: Stream) -> torch.Tensor:
        """The first sample of all, on every rank: what is decided by it is decided alike."""
        first = {"sample": inputs[:1].cpu()} if self.job.ranks.first else None
        return self.job.ranks.broadcast(first)["sample"].to(self.job.device)

    def activations_quantized(self) -> AbstractContextManager[None]:
        """Activations are quantized inside, if the recipe quantizes any."""
        activations = self.job.activations
        return activations.switched(on=True) if activations else nullcontext()

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """No autocast inside."""
        amp, self.amp = self.amp, None
        try:
            yield
        finally:
            self.amp = amp


def stream_name(kind: str, index: int) -> str:
    """Of what enters a block: `original` or `quantized`."""
    return f"{kind}-{index:05d}"
