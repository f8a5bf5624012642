"""What there is to know of an architecture of llama.cpp to write its files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from roundel.formats.gguf.keys import Key, rope_of
from roundel.formats.gguf.rules import Rule


@dataclass(frozen=True)
class Need:
    """What llama.cpp supposes of every model of an architecture; a model that is otherwise would compute nonsense.

    Attributes:
        met: by a config.
        words: what it is, for a message: "the activation silu".
    """

    met: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    Attributes:
        name: in `general.architecture`.
        types: `model_type` in transformers' configs that it is for.
        rules: of its tensors, before those that hold for all.
        keys: of its metadata, before those that hold for all.
        needs: what its configs must be.
        added: tensors that the file has and the model has not, by name, of a config.
        special_tokens: texts of tokens by what they are for, where tokenizers do not say so.
        scalings: kinds of rotary embeddings (`rope_type`) that it computes.
    """

    name: str
    types: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    keys: tuple[Key, ...] = ()
    needs: tuple[Need, ...] = ()
    added: Callable[[Any], dict[str, torch.Tensor]] = field(default=lambda config: {})
    special_tokens: dict[str, str] = field(default_factory=dict)
    scalings: tuple[str, ...] = ("default", "linear", "yarn")


def one_of(name: str, *allowed: Any) -> Need:
    """A setting has one of some values, where a config has it at all."""
    words = " or ".join(str(value) for value in allowed if value is not None)
    return Need(lambda config: getattr(config, name, allowed[0]) in allowed, f"{name} {words}")


def scaling_of(config: Any) -> str:
    """The kind of a rotary embedding, with what makes it another one."""
    rope = rope_of(config)
    odd = [name for name in ("mscale", "mscale_all_dim", "mrope_section") if rope.get(name)]
    return " with ".join([rope.get("rope_type") or "default", *odd])


SILU = one_of("hidden_act", "silu", "swish")
