"""The KV cache on a grid: keys and values are rounded when they enter a cache, whatever cache it is.

Every attention of transformers hands its keys, the rotary embedding applied, and its values to `Cache.update` and
computes with what comes back. So one place serves all models, in tuning, evaluation and generation alike.
"""

from functools import cache
from typing import Any

import torch
from transformers import Cache, DynamicCache

from roundel.activations.rounding import quantize_vectors
from roundel.activations.scheme import ActivationScheme


def new_cache(config: Any) -> Cache:
    """An empty cache of the kind that the model makes for itself."""
    return DynamicCache(config=config)


def quantizing(past: Cache, scheme: ActivationScheme) -> Cache:
    """Make a cache round what enters it, in place; one that does so already is left alone."""
    if not hasattr(past, "activation_scheme"):
        kind: Any = type(past)
        past.__class__ = _quantizing_class(kind)
        past.activation_scheme = scheme
    return past


@cache
def _quantizing_class(kind: Any) -> Any:
    """A subclass of any kind of cache. (A wrapped method in the instance would be a reference cycle, and keep
    the keys and values of every step until the garbage collector comes by.)"""

    def update(
        self: Any, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        keys = quantize_vectors(key_states, self.activation_scheme)
        values = quantize_vectors(value_states, self.activation_scheme)
        return kind.update(self, keys, values, *args, **kwargs)

    return type(f"Quantizing{kind.__name__}", (kind,), {"update": update})
