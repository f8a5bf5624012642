"""What the model itself feeds to its blocks: captured, never reconstructed.

Masks, rotary embeddings, ALiBi biases and whatever else a model class passes down are recorded by running the
model, per block (they may differ from block to block) and per batch size (some carry the batch dimension). The
blocks themselves do not compute in that pass: each hands on a hidden state that can be told from all others, which
costs nothing, needs no block's weights in memory, and shows whether the blocks are a chain. Only the first block
runs once, to see in which form blocks return their output.
Calibration rows all have the same length and no padding, so the arguments of one batch serve every batch of
that size; only the hidden states differ. So does the KV cache, where one is used: every run gets a fresh one.

Models of which that is not true would be quantized on activations that they never have, and nothing would show it:
arguments that depend on the tokens, or on hidden states of earlier blocks (a second pass, with other tokens, tells),
values that a block hands to the next one beside its hidden states, state that blocks share in an object. They are
refused, with what was seen.

A model that sees may have blocks of a kind of their own which text passes by (Mllama's cross-attention to pictures):
here too they hand on what they get, and none of their Linears is ever seen to read anything.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn
from transformers import Cache

from roundel.errors import ModelError
from roundel.model.block_call import (
    BlockCall,
    contains_cache,
    first_of,
    hidden_states_of,
    make_call,
    mappings_in,
    moved,
    own_copy,
    rebuilt,
    replaced,
    tensors_in,
)
from roundel.model.blocks import BlockStack
from roundel.model.text_path import reading_text, text_model


class _Stop(Exception):
    """Ends a forward pass whose rest is not wanted."""


class BlockRunner:
    """Runs single blocks of a model the way the model runs them.

    Args:
        model: the causal language model, in eval mode.
        stack: its blocks.
        tokens: `[N, S]` calibration token ids; the first rows are used for capturing.
        make_cache: gives every run an empty KV cache; None = run without.
        quiet: a context around passes of the whole model, in which nothing attached to it may act.
        around: a context in which everything around the blocks is in memory.

    Raises:
        ModelError: the model does not run on text alone, the blocks are no chain, or take no cache where one is used
            (at capture).
    """

    def __init__(
        self,
        model: nn.Module,
        stack: BlockStack,
        tokens: torch.Tensor,
        make_cache: Callable[[], Cache | None] | None = None,
        quiet: Callable[[], AbstractContextManager[None]] = nullcontext,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model: Any = model
        self._reader = text_model(model)
        self.stack = stack
        self.tokens = tokens
        self.make_cache = make_cache or (lambda: None)
        self.quiet = quiet
        self.around = around
        # By batch size; None: text passes a block by.
        self._calls: dict[int, list[BlockCall | None]] = {}
        # What follows the hidden states in the output of a block; None: the output is a tensor.
        self._rest: tuple[Any, ...] | None = None
        self._form: type[tuple[Any, ...]] | type[list[Any]] = tuple
        # Their hidden states are [S, B, H] (ChatGLM); everywhere else, here too, [B, S, H].
        self._sequence_first = False
        self._known_form = False

    @property
    def device(self) -> torch.device:
        """Where the model's embeddings are."""
        device: torch.device = self._reader.get_input_embeddings().weight.device
        return device

    @torch.no_grad()
    def first_inputs(self, batch_size: int) -> Iterator[torch.Tensor]:
        """The hidden states that enter the first block, `[B, S, H]` on the model's device, batch by batch."""
        if not self._known_form:
            self._see_form(self.tokens)
        taken: list[torch.Tensor] = []

        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken.append(self._turned(hidden_states_of(args, kwargs).detach()))
            raise _Stop

        handle = self.stack.blocks[0].register_forward_pre_hook(take, with_kwargs=True)
        try:
            for batch in self.tokens.split(batch_size):
                self._forward(batch)
                if not taken:
                    raise self._wrong_calls(0)
                if taken[0].ndim != 3:
                    raise ModelError(
                        f"{self.stack.block_name(0)} takes hidden states of shape {tuple(taken[0].shape)}: one vector "
                        "for each token is expected; this architecture is not supported"
                    )
                yield taken.pop()
        finally:
            handle.remove()

    def prepare(self, batch_size: int) -> None:
        """Record the arguments of batches of this size now: that runs the model around its blocks, and its hooks.

        The first block must be in memory at the first call.
        """
        self._call(0, batch_size)

    def passed_by(self, batch_size: int) -> list[int]:
        """Blocks that do nothing to text."""
        self._call(0, batch_size)
        return [index for index, call in enumerate(self._calls[batch_size]) if call is None]

    def run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Block `index` on `hidden [B, S, H]`; arguments follow its device and floating type."""
        call = self._call(index, hidden.shape[0])
        if call is None:
            return hidden
        cache = self.make_cache()
        args = moved(call.args, hidden, cache)
        kwargs = moved(call.kwargs, hidden, cache)
        entering = self._turned(hidden)
        shared = mappings_in(call)
        sizes = [len(mapping) for mapping in shared]
        if call.by_keyword:
            output = self.stack.blocks[index](*args, hidden_states=entering, **kwargs)
        else:
            output = self.stack.blocks[index](entering, *args, **kwargs)
        if cache is not None:
            self._check_cache(index, call, cache)
        if sizes != [len(mapping) for mapping in shared]:
            raise self._more_than_hidden_states(
                index, "an object in which it leaves something for later blocks"
            )
        return self._turned(first_of(output))

    @torch.no_grad()
    def inputs_of(self, module: nn.Module, last_hidden: torch.Tensor) -> torch.Tensor:
        """What reaches `module`, which comes after the blocks, when the last block returns `last_hidden`.

        The blocks are skipped; the model runs its final norm itself.
        """
        size = last_hidden.shape[0]
        self._call(0, size)
        taken: list[torch.Tensor] = []

        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken.append(args[0].detach())
            raise _Stop

        def skip(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._output(self._turned(last_hidden))

        handle = module.register_forward_pre_hook(take, with_kwargs=True)
        try:
            with _replaced_forward(self.stack, skip):
                self._forward(self.tokens[:size])
        finally:
            handle.remove()
        return taken[0]

    @torch.no_grad()
    def logits_of(self, rows: torch.Tensor, last_hidden: torch.Tensor) -> torch.Tensor:
        """`[B, S, V]`, what the model makes of `last_hidden [B, S, H]`, which its last block returns for `rows [B, S]`.

        The blocks are skipped; everything after them (final norm, head, scaling, caps) is the model's own.
        """
        self._call(0, len(rows))

        def skip(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._output(self._turned(last_hidden))

        with _replaced_forward(self.stack, skip):
            logits: torch.Tensor = self._reader(input_ids=rows.to(self.device), use_cache=False).logits
        return logits

    def _turned(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[B, S, H]` from the layout of the blocks, or the other way round."""
        return hidden.transpose(0, 1).contiguous() if self._sequence_first else hidden

    def _output(self, hidden: torch.Tensor) -> Any:
        """Hidden states in the form in which blocks return them."""
        return hidden if self._rest is None else rebuilt(self._form, [hidden, *self._rest])

    def _call(self, index: int, batch_size: int) -> BlockCall | None:
        if batch_size not in self._calls:
            rows = self.tokens[:batch_size]
            if rows.shape[0] < batch_size:
                rows = rows.repeat(-(-batch_size // rows.shape[0]), 1)[:batch_size]
            with self.around():
                if not self._known_form:
                    self._see_form(rows)
                calls = self._capture(rows)
                if not self._calls:
                    self._check_independence(calls, self._capture(self._other_tokens(rows), shift=0.5))
                self._calls[batch_size] = calls
        return self._calls[batch_size][index]

    @torch.no_grad()
    def _see_form(self, rows: torch.Tensor) -> None:
        """Run the model up to the end of its first block."""

        def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, tuple | list):
                self._form, self._rest = type(output), tuple(output[1:])
            self._sequence_first = first_of(output).shape[0] != 1
            self._known_form = True
            raise _Stop

        handle = self.stack.blocks[0].register_forward_hook(see)
        try:
            with reading_text(self.model):
                self._forward(rows[:1])
        finally:
            handle.remove()

    @torch.no_grad()
    def _capture(self, rows: torch.Tensor, shift: float = 0.0) -> list[BlockCall | None]:
        """One pass through the model, its blocks left out, that records their arguments and checks the chain.

        Args:
            rows: `[B, S]` token ids.
            shift: added to the hidden states that blocks hand on.
        """
        calls: list[BlockCall | None] = []
        handed_on: list[torch.Tensor] = []
        beside: list[torch.Tensor] = []  # what the block before handed on beside them

        def note(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = hidden_states_of(args, kwargs)
            if any(tensor is other for tensor in tensors_in((args, kwargs)) for other in beside):
                raise self._more_than_hidden_states(index, "what the block before it returns beside them")
            if index < len(calls) or (handed_on and not torch.equal(handed_on[-1], hidden)):
                raise ModelError(
                    f"{self.stack.block_name(index)} is not fed with the output of the block before it: "
                    "a plain chain of decoder blocks is expected. If other modules are the blocks, name them with "
                    "--blocks PATTERN; else this architecture is not supported"
                )
            calls.extend([None] * (index - len(calls)))
            calls.append(make_call(args, kwargs))
            handed_on.append(torch.full_like(hidden, index + 1 + shift))
            output = replaced(self._output(handed_on[-1]), own_copy)
            beside[:] = tensors_in(output[1:]) if self._rest is not None else []
            handed_on[-1] = first_of(output)
            return output

        with _replaced_forward(self.stack, note):
            self._forward(rows)
        calls.extend([None] * (len(self.stack) - len(calls)))
        called = [call for call in calls if call is not None]
        if not self._of_other_kinds([index for index, call in enumerate(calls) if call is None]):
            raise self._wrong_calls(len(called))
        return calls

    def _of_other_kinds(self, passed_by: list[int]) -> bool:
        """Whether none of these blocks is of a class that text runs; else it is not the model's blocks that we have."""
        kinds = {type(block) for index, block in enumerate(self.stack.blocks) if index not in passed_by}
        return bool(kinds) and not any(type(self.stack.blocks[index]) in kinds for index in passed_by)

    def _other_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """Different ones that the model knows too."""
        low, high = int(self.tokens.min()), int(self.tokens.max())
        return (rows - low + 1) % (high - low + 1) + low

    def _check_independence(self, calls: list[BlockCall | None], others: list[BlockCall | None]) -> None:
        """Arguments of blocks must neither depend on the tokens nor on hidden states."""
        for index, (call, other) in enumerate(zip(calls, others, strict=True)):
            if call is None or other is None:
                if call is not other:
                    raise self._more_than_hidden_states(index, "a decision that depends on the tokens")
                continue
            for (name, one), two in zip(call.named.items(), other.named.values(), strict=True):
                pairs = zip(tensors_in(one), tensors_in(two), strict=True)
                if not all(torch.equal(a, b) for a, b in pairs):
                    raise self._more_than_hidden_states(index, f"{name}, which depends on the tokens")

    def _more_than_hidden_states(self, index: int, what: str) -> ModelError:
        return ModelError(
            f"{self.stack.block_name(index)} takes more than hidden states: {what}. Methods that read data are not "
            "supported on this architecture; --method rtn --set start=minmax is"
        )

    def _wrong_calls(self, count: int) -> ModelError:
        return ModelError(
            f"{count} calls of the {len(self.stack)} blocks of {self.stack.name} in one forward pass; exactly one "
            "each is expected. If other modules are the blocks, name them with --blocks PATTERN; else this "
            "architecture is not supported"
        )

    def _check_cache(self, index: int, call: BlockCall, cache: Cache) -> None:
        """Every block must be handed the cache, and put its keys and values into it."""
        if not contains_cache((call.args, call.kwargs)) or not cache.get_seq_length(index):
            raise ModelError(
                f"{self.stack.block_name(index)} puts no keys and values into a KV cache, so there is nothing to "
                "quantize: leave kv_bits out; this architecture is not supported with it"
            )

    def _forward(self, rows: torch.Tensor) -> None:
        """A pass of the model, up to its head: logits of a large vocabulary would be the largest tensor of all."""
        cache = self.make_cache()
        given = {} if cache is None else {"past_key_values": cache}
        head = self._reader.get_output_embeddings()
        stop = head.register_forward_pre_hook(_stop) if head is not None else nullcontext()
        with stop, suppress(_Stop), self.quiet():
            self._reader(input_ids=rows.to(self.device), use_cache=False, **given)


def _stop(*_: Any) -> None:
    raise _Stop


@contextmanager
def _replaced_forward(
    stack: BlockStack, forward: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
) -> Iterator[None]:
    """Every block computes `forward(its index, arguments)` instead of its own."""

    def of(index: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: forward(index, args, kwargs)

    for index, block in enumerate(stack.blocks):
        block.forward = of(index)
    try:
        yield
    finally:
        for block in stack.blocks:
            del block.forward
