"""A model measured block by block: one block's weights in memory at a time, all windows through each.

Arguments of the blocks are captured from the model (capture.py), and what lies around the blocks computes in it, so the
logits are those of a forward pass of the whole model, bit for bit. As many windows go together as fit a gigabyte of
hidden states; for the next ones the blocks are read again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import Cache

from roundel.model.blocks import BlockStack
from roundel.model.capture import BlockRunner
from roundel.model.storage import Storage
from roundel.system.progress import Progress

_HIDDEN_BYTES = 1 << 30


class BlockByBlock:
    """A causal language model whose blocks are loaded when their turn comes.

    Args:
        model: its blocks may be without weights.
        stack: its decoder blocks.
        storage: where their weights are.
        device: where blocks compute.
        make_cache: gives every pass its KV cache, where one is to round; None: run without.
        quiet: a context in which nothing attached to the model acts.
        progress: gets the blocks.

    Raises:
        ModelError: the blocks are no plain chain, or take more than hidden states (at the first logits).
    """

    def __init__(
        self,
        model: Any,
        stack: BlockStack,
        storage: Storage,
        device: torch.device,
        make_cache: Callable[[], Cache | None] | None = None,
        quiet: Callable[[], AbstractContextManager[None]] = nullcontext,
        progress: Progress = Progress(),
    ) -> None:
        self.model, self.stack, self.storage, self.device = model, stack, storage, device
        self.make_cache, self.quiet, self.progress = make_cache, quiet, progress

    @torch.no_grad()
    def logits(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        """All windows that fit through all blocks, then their logits one by one."""
        width = self.model.config.get_text_config().hidden_size
        together = max(1, _HIDDEN_BYTES // (windows.shape[1] * width * self.model.dtype.itemsize))
        for some in windows.split(together):
            yield from self._logits(some)

    def _logits(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        runner = BlockRunner(self.model, self.stack, windows, self.make_cache, self.quiet, self._around)
        first = self.stack.blocks[0], self.stack.block_name(0)
        self.storage.load(*first)
        with self._around():
            runner.prepare(1)
            hidden = list(runner.first_inputs(1))
        with self.progress.stage("Block by block", len(self.stack)):
            for index, block in enumerate(self.stack.blocks):
                name = self.stack.block_name(index)
                self.storage.load(block, name)
                block.to(self.device)
                for row, entering in enumerate(hidden):
                    hidden[row] = runner.run(index, entering.to(self.device)).cpu()
                self.storage.release(block, name)
                self.progress.advance()
        with self._around():
            for window, leaving in zip(windows, hidden, strict=True):
                yield runner.logits_of(window[None], leaving.to(runner.device))[0]

    def _around(self) -> AbstractContextManager[None]:
        return self.storage.around(self.model, self.stack)
