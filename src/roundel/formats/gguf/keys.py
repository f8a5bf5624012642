"""Metadata of a model, as keys whose values are found in its config.

A key is named as the method of `gguf.GGUFWriter` that adds it: that library knows its name in the file and its type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Value = Callable[[Any], Any]
"""Of a config; None: the key is left out."""


@dataclass(frozen=True)
class Key:
    """A line of metadata.

    Attributes:
        name: of the method `add_NAME` of `gguf.GGUFWriter`.
        value: of the config.
    """

    name: str
    value: Value


def setting(*names: str) -> Value:
    """The first of several settings that a config has."""
    return lambda config: next(
        (found for name in names if (found := getattr(config, name, None)) is not None), None
    )


def always(value: Any) -> Value:
    """The same for every model; None: an architecture has no such key."""
    return lambda config: value


def times(factor: int, value: Value) -> Value:
    """A multiple of a number."""
    return lambda config: factor * value(config)


def first(*values: Value) -> Value:
    """The first that is not None."""
    return lambda config: next((found for value in values if (found := value(config)) is not None), None)


def blocks_of(config: Any) -> int:
    """How many decoder blocks there are."""
    found = setting("num_hidden_layers", "num_layers")(config)
    return int(found)


def head_width(config: Any) -> int:
    """Of one head of the queries."""
    width: int | None = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads


def rope_of(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """The settings of the rotary embedding, of all blocks or of those of one kind.

    Returns:
        With `rope_type` and `rope_theta`; empty where there is none.
    """
    found = getattr(config, "rope_parameters", None) or {}
    of_kind = found.get(kind, found if kind == "full_attention" else {})
    return of_kind if "rope_theta" in of_kind else {}


def rotary_width(config: Any) -> int:
    """How many numbers of a head are turned."""
    factor = (
        rope_of(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    )
    return int(head_width(config) * factor)


def slides(config: Any) -> list[bool] | None:
    """Which blocks see a window only."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is None else [kind == "sliding_attention" for kind in kinds]


def slides_unless(period: int) -> Value:
    """The same, unless it is what llama.cpp supposes: all but the last of every `period` blocks."""

    def value(config: Any) -> list[bool] | None:
        kinds = slides(config)
        usual = kinds == [block % period < period - 1 for block in range(config.num_hidden_layers)]
        return None if usual else kinds

    return value
