"""The arguments of one block's call: taken down without hidden states and cache, and made again for other samples."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

from roundel.errors import ModelError

# Stands in captured arguments where the KV cache was.
_CACHE = object()


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block's call, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool  # the hidden states came as `hidden_states=`

    @property
    def named(self) -> dict[str, Any]:
        """The arguments, for messages."""
        return {**{f"argument {i + 1}": value for i, value in enumerate(self.args)}, **self.kwargs}


def make_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockCall:
    """Take down a call."""
    by_keyword = "hidden_states" in kwargs
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    first = args if by_keyword else args[1:]
    return BlockCall(_without_cache(first), _without_cache(rest), by_keyword)


def _without_cache(value: Any) -> Any:
    """Captured arguments with a mark where a cache was: the cache itself holds the keys of the whole model."""
    return replaced(value, lambda item: _CACHE if isinstance(item, Cache) else item)


def contains_cache(value: Any) -> bool:
    """Whether there was a cache among captured arguments."""
    found = []
    replaced(value, lambda item: found.append(item) if item is _CACHE else item)
    return bool(found)


def hidden_states_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """What a block reads.

    Raises:
        ModelError: it is called without hidden states.
    """
    found = kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(args), None)
    if not isinstance(found, torch.Tensor):
        raise ModelError(
            f"a block is called with {', '.join(kwargs) or 'nothing'}: hidden states, as its first argument or as "
            "`hidden_states`, are expected; this architecture is not supported"
        )
    return found


def first_of(output: Any) -> torch.Tensor:
    """The hidden states that a block returns, by themselves or before other things."""
    found: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return found


def own_copy(item: Any) -> Any:
    """A copy of a tensor; anything else as it is."""
    return item.clone() if isinstance(item, torch.Tensor) else item


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors inside nested containers."""
    found: list[torch.Tensor] = []
    replaced(value, lambda item: found.append(item) if isinstance(item, torch.Tensor) else None)
    return found


def mappings_in(call: BlockCall) -> list[MutableMapping[Any, Any]]:
    """Objects among the arguments of a call in which something can be left for others."""
    found: list[MutableMapping[Any, Any]] = []
    replaced(call.named, lambda item: found.append(item) if isinstance(item, MutableMapping) else None)
    return found


def moved(value: Any, like: torch.Tensor, cache: Cache | None) -> Any:
    """Tensors to the device of `like`, floating ones to its type as well; `cache` where one belongs."""

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.to(like.device, like.dtype if item.is_floating_point() else item.dtype)
        return cache if item is _CACHE else item

    return replaced(value, move)


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` on everything inside nested containers."""
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return rebuilt(type(value), [replaced(item, change) for item in value])
    return change(value)


def rebuilt(form: Any, items: list[Any]) -> Any:
    """A tuple or list; a named tuple takes its items one by one."""
    return form(*items) if hasattr(form, "_fields") else form(items)
