"""What a walk over the blocks needs, put together by the workflow that starts it."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.engine.coverage import Coverage
from roundel.engine.journal import Journal
from roundel.engine.snapshots import TuningSnapshots
from roundel.engine.streams import StreamHome
from roundel.model.blocks import BlockStack
from roundel.model.capture import BlockRunner
from roundel.model.linears import LinearView
from roundel.model.storage import InMemory, Storage
from roundel.recipe import Recipe
from roundel.system.progress import Progress
from roundel.system.ranks import ALONE, Ranks

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
        progress: gets every block and step.
        home: where activations between blocks are.
        storage: where the weights of blocks are.
        journal: remembers finished blocks; None: nothing outlives the process.
        keeps_weights: leave the quantized blocks, and their integers, in memory.
        activations: attached to the model, where activations are quantized; left enabled.
        snapshot_seconds: how often the state inside a block is written down.
        ranks: the processes that walk together.
        lockstep: other jobs are done beside this one, block by block.
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
    keeps_weights: bool = True
    activations: ActivationQuantizer | None = None
    snapshot_seconds: float = SNAPSHOT_SECONDS
    ranks: Ranks = ALONE
    lockstep: bool = False

    @property
    def independent(self) -> bool:
        """Whether every rank quantizes blocks of its own."""
        several = self.ranks.size > 1 and self.journal is not None
        return several and not self.lockstep and not self.recipe.needs_quantized_stream

    def linears(self, index: int) -> list[LinearView]:
        """Those of a block that are to be quantized."""
        return [view for view in self.stack.linears(index) if view.name in self.coverage.schemes]

    def snapshots(self, attempt: str) -> TuningSnapshots | None:
        """Where the state of tuning a block is written down, by the name of the attempt; None: it is not."""
        if self.journal is None:
            return None
        path = self.journal.folder / f"tuning-{attempt}.safetensors"
        return TuningSnapshots(path, self.model, self.progress, self.snapshot_seconds, self.ranks)


def make_runner(job: Job, tokens: torch.Tensor, activations: ActivationQuantizer | None) -> BlockRunner:
    """What runs the blocks of a job's model on some calibration tokens."""
    cache = activations.cache if activations is not None and activations.kv else None
    quiet = nullcontext if activations is None else partial(activations.switched, on=False)
    around = partial(job.storage.around, job.model, job.stack)
    return BlockRunner(job.model, job.stack, tokens, cache, quiet, around)
