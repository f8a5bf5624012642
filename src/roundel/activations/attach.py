"""Attached to a model: hooks that round the inputs of its Linears and what enters its KV cache.

A Linear that multiplies by integers (runtime/) is given them, in place of rounded floats.

What they need is little, a scheme and the static grids, and lies beside the weights as JSON; so a folder of any
format runs with the very rounding that its weights were tuned under.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import Cache

from roundel.activations.kv_cache import new_cache, quantizing
from roundel.activations.rounding import Codes, codes_of, quantize_static, quantize_vectors
from roundel.activations.scheme import Activations, ActivationScheme, StaticGrid
from roundel.errors import ModelError
from roundel.formatting import kind_and_line
from roundel.model.experts import divide, rejoin

FILE = "roundel_activations.json"
# Under this name a model knows its quantizer.
_ATTRIBUTE = "roundel_activations"


CodesOf = Callable[[torch.Tensor], Codes | None]
"""The integers of an input; None: it stays as it is."""


@runtime_checkable
class TakesCodes(Protocol):
    """A Linear that multiplies by the integers of its input."""

    def take_codes(self, source: CodesOf | None) -> None:
        """From now on by those that `source` gives."""
        ...


class ActivationQuantizer:
    """Rounds activations of a model while it is enabled.

    Args:
        model: the causal language model.
        layers: full names of the Linears whose inputs are rounded.
        grids: of those inputs, and of keys and values.

    Attributes:
        enabled: off: the model computes as if nothing were attached.
        static: the fixed grids by layer name, where inputs are static; to be filled before the layer runs enabled.
    """

    def __init__(self, model: Any, layers: list[str], grids: Activations) -> None:
        self.config = model.config
        self.layers, self.grids = layers, grids
        self.inputs, self.kv = grids.inputs, grids.kv
        self.static: dict[str, StaticGrid] = {}
        self.enabled = False
        self._hooks = ExitStack()
        if self.inputs is not None:
            for name in layers:
                module = model.get_submodule(name)
                if isinstance(module, TakesCodes):
                    module.take_codes(partial(self.input_codes, name))
                    self._hooks.callback(module.take_codes, None)
                    continue
                self._hooks.callback(module.register_forward_pre_hook(self._hook(name)).remove)
        if self.kv is not None:
            self._hooks.callback(model.register_forward_pre_hook(self._give_cache, with_kwargs=True).remove)
        setattr(model, _ATTRIBUTE, self)
        self._hooks.callback(delattr, model, _ATTRIBUTE)

    def detach(self) -> None:
        """Take all hooks off the model."""
        self._hooks.close()

    @property
    def summary(self) -> str:
        """What is rounded, for people; empty while nothing is."""
        parts = []
        if self.inputs is not None:
            parts.append(f"inputs of {len(self.layers)} Linears {self.inputs.summary}")
        if self.kv is not None:
            parts.append(f"KV cache {self.kv.summary} and head")
        return "; ".join(parts) if self.enabled else ""

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """Enabled or disabled inside."""
        before, self.enabled = self.enabled, on
        try:
            yield
        finally:
            self.enabled = before

    def round_input(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The input of a layer on its grid, in the type of `x`."""
        assert self.inputs is not None
        if self.inputs.static:
            return quantize_static(x, self.static[name], self.inputs)
        return quantize_vectors(x, self.inputs)

    def input_codes(self, name: str, x: torch.Tensor) -> Codes | None:
        """The integers of a layer's input, while enabled."""
        if not self.enabled:
            return None
        assert self.inputs is not None
        return codes_of(x, self.inputs, self.static[name] if self.inputs.static else None)

    def cache(self) -> Cache | None:
        """A fresh KV cache for one pass; None where the cache stays as it is."""
        if self.kv is None:
            return None
        past = new_cache(self.config)
        return quantizing(past, self.kv) if self.enabled else past

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def round_first(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            return (self.round_input(name, args[0]), *args[1:]) if self.enabled else None

        return round_first

    def _give_cache(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a pass of the whole model: its cache, or a fresh one, rounds."""
        if not self.enabled or self.kv is None:
            return None
        past = kwargs.get("past_key_values")
        kwargs["past_key_values"] = self.cache() if past is None else quantizing(past, self.kv)
        return args, kwargs

    def save(self, folder: Path) -> None:
        """Write everything beside the weights."""
        content = {
            "version": 1,
            "inputs": asdict(self.inputs) if self.inputs else None,
            "kv": asdict(self.kv) if self.kv else None,
            "layers": self.layers,
            "static": {name: asdict(grid) for name, grid in self.static.items()},
        }
        (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def attached(model: Any) -> ActivationQuantizer | None:
    """The quantizer that was attached to a model, if any."""
    found: ActivationQuantizer | None = getattr(model, _ATTRIBUTE, None)
    return found


def attach_saved(model: Any, folder: Path) -> ActivationQuantizer | None:
    """Attach and enable what lies beside the weights of a folder; None where nothing does.

    Raises:
        ModelError: the file is damaged, or does not fit the model.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        inputs, kv = (
            ActivationScheme(**content[key]) if content[key] is not None else None for key in ("inputs", "kv")
        )
        static = {name: StaticGrid(**grid) for name, grid in content["static"].items()}
        if inputs is not None and inputs.static and set(static) != set(content["layers"]):
            raise KeyError("static grids for other layers than those that are quantized")
        if inputs is not None:
            divide(model)  # an expert is no module else, and takes no hook
            rejoin(model, keep={name.rpartition(".")[0] for name in content["layers"]})
        quantizer = ActivationQuantizer(model, content["layers"], Activations(inputs, kv))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} cannot be used ({kind_and_line(error)}): the file that was written with the weights is "
            "expected"
        ) from error
    quantizer.static = static
    quantizer.enabled = True
    return quantizer
