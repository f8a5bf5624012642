"""What the model itself feeds to its blocks: captured, never reconstructed.

Masks, rotary embeddings, ALiBi biases and whatever else a model class passes down are recorded by running the
model, per block (they may differ from block to block) and per batch size (some carry the batch dimension).
Calibration rows all have the same length and no padding, so the arguments of one batch serve every batch of
that size; only the hidden states differ. So does the KV cache, where one is wanted: every run gets a fresh one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache

from roundel.errors import ModelError
from roundel.model.blocks import BlockStack

# Stands in captured arguments where the KV cache was.
_CACHE = object()


class _Stop(Exception):
    """Ends a forward pass whose rest is not wanted."""


@dataclass(frozen=True)
class _Call:
    """The arguments of one block's call, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool  # the hidden states came as `hidden_states=`
    returns_tuple: bool


class BlockRunner:
    """Runs single blocks of a model the way the model runs them.

    Args:
        model: the causal language model, in eval mode.
        stack: its blocks.
        tokens: `[N, S]` calibration token ids; the first rows are used for capturing.
        make_cache: gives every run an empty KV cache; None = run without.
        quiet: a context around passes of the whole model, in which nothing attached to it may act.

    Raises:
        ModelError: the blocks are no chain, or take no cache where one is wanted (at capture).
    """

    def __init__(
        self,
        model: nn.Module,
        stack: BlockStack,
        tokens: torch.Tensor,
        make_cache: Callable[[], Cache | None] | None = None,
        quiet: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model
        self.stack = stack
        self.tokens = tokens
        self.make_cache = make_cache or (lambda: None)
        self.quiet = quiet
        self._calls: dict[int, list[_Call]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model's embeddings are."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def first_inputs(self, batch_size: int) -> torch.Tensor:
        """The hidden states that enter the first block, `[N, S, H]` on the model's device."""
        taken: list[torch.Tensor] = []

        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken.append(_hidden(args, kwargs).detach())
            raise _Stop

        handle = self.stack.blocks[0].register_forward_pre_hook(take, with_kwargs=True)
        try:
            for batch in self.tokens.split(batch_size):
                self._forward(batch)
        finally:
            handle.remove()
        return torch.cat(taken)

    def prepare(self, batch_size: int) -> None:
        """Record the arguments of batches of this size now: that runs the whole model, and its hooks."""
        self._call(0, batch_size)

    def run(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Block `index` on `hidden [B, S, H]`; arguments follow its device and floating type."""
        call = self._call(index, hidden.shape[0])
        cache = self.make_cache()
        args = _move(call.args, hidden, cache)
        kwargs = _move(call.kwargs, hidden, cache)
        if call.by_keyword:
            output = self.stack.blocks[index](*args, hidden_states=hidden, **kwargs)
        else:
            output = self.stack.blocks[index](hidden, *args, **kwargs)
        return output[0] if call.returns_tuple else output

    @torch.no_grad()
    def inputs_of(self, module: nn.Module, last_hidden: torch.Tensor) -> torch.Tensor:
        """What reaches `module`, which lies behind the blocks, when the last block returns `last_hidden`.

        The blocks are skipped; the model runs its final norm itself.
        """
        size = last_hidden.shape[0]
        call = self._call(len(self.stack) - 1, size)
        taken: list[torch.Tensor] = []

        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken.append(args[0].detach())
            raise _Stop

        def skip(*args: Any, **kwargs: Any) -> Any:
            return (last_hidden,) if call.returns_tuple else last_hidden

        handle = module.register_forward_pre_hook(take, with_kwargs=True)
        try:
            with _replaced_forward(self.stack, skip):
                self._forward(self.tokens[:size])
        finally:
            handle.remove()
        return taken[0]

    def _call(self, index: int, batch_size: int) -> _Call:
        if batch_size not in self._calls:
            rows = self.tokens[:batch_size]
            if rows.shape[0] < batch_size:
                rows = rows.repeat(-(-batch_size // rows.shape[0]), 1)[:batch_size]
            self._calls[batch_size] = self._capture(rows)
        return self._calls[batch_size][index]

    @torch.no_grad()
    def _capture(self, rows: torch.Tensor) -> list[_Call]:
        """One pass through the whole model that records each block's arguments and checks the chain."""
        inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        outputs: list[Any] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if outputs and not torch.equal(_first(outputs[-1]), _hidden(args, kwargs)):
                raise ModelError(
                    f"{self.stack.block_name(len(outputs))} is not fed with the output of the block before it: "
                    "a plain chain of decoder blocks is wanted; this architecture is not supported"
                )
            inputs.append((args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            outputs.append(output)

        with ExitStack() as hooks:
            for block in self.stack.blocks:
                hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after).remove)
            self._forward(rows)
        if len(inputs) != len(self.stack):
            raise ModelError(
                f"{len(inputs)} calls of the {len(self.stack)} blocks of {self.stack.name} in one forward pass; "
                "exactly one each is wanted; this architecture is not supported"
            )
        calls = [_make_call(args, kwargs, out) for (args, kwargs), out in zip(inputs, outputs, strict=True)]
        if self.make_cache() is not None:
            self._check_caches(calls, rows)
        return calls

    def _check_caches(self, calls: list[_Call], rows: torch.Tensor) -> None:
        """Every block must be handed the cache, and put its keys and values into it."""
        cache = self._forward(rows[:1])
        for index, call in enumerate(calls):
            handed = _contains_cache((call.args, call.kwargs))
            if not handed or cache is None or not cache.get_seq_length(index):
                raise ModelError(
                    f"{self.stack.block_name(index)} puts no keys and values into a KV cache, so there is nothing to "
                    "quantize: leave kv_bits out; this architecture is not supported with it"
                )

    def _forward(self, rows: torch.Tensor) -> Cache | None:
        """A pass of the whole model; the cache that it filled."""
        cache = self.make_cache()
        given = {} if cache is None else {"past_key_values": cache}
        with suppress(_Stop), self.quiet():
            self.model(input_ids=rows.to(self.device), use_cache=False, **given)
        return cache


def _make_call(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> _Call:
    by_keyword = "hidden_states" in kwargs
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    first = args if by_keyword else args[1:]
    return _Call(_without_cache(first), _without_cache(rest), by_keyword, isinstance(output, tuple))


def _without_cache(value: Any) -> Any:
    """Captured arguments with a mark where a cache was: the cache itself holds the keys of the whole model."""
    return _replace(value, lambda item: _CACHE if isinstance(item, Cache) else item)


def _contains_cache(value: Any) -> bool:
    found = []
    _replace(value, lambda item: found.append(item) if item is _CACHE else item)
    return bool(found)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _move(value: Any, like: torch.Tensor, cache: Cache | None) -> Any:
    """Tensors to the device of `like`, floating ones to its type as well; `cache` where one belongs."""

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.to(like.device, like.dtype if item.is_floating_point() else item.dtype)
        return cache if item is _CACHE else item

    return _replace(value, move)


def _replace(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` on everything inside nested containers."""
    if isinstance(value, dict):
        return {key: _replace(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_replace(item, change) for item in value])
    return change(value)


@contextmanager
def _replaced_forward(stack: BlockStack, forward: Any) -> Iterator[None]:
    """Every block computes `forward` instead of its own."""
    for block in stack.blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in stack.blocks:
            del block.forward
