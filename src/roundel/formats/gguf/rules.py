"""What an architecture does to a tensor on its way into a GGUF file, as rules.

Most tensors go as they are under the name that the `gguf` package knows. A rule says what happens to those whose name
fits its pattern; the first that fits is taken. All of them move whole rows, so that integers in groups along the input
move as weights do.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from roundel.formats.gguf.layout import Place
from roundel.formats.gguf.rows import between, by_kind, in_pairs


@dataclass(frozen=True)
class Named:
    """A tensor of a model that has to be placed.

    Attributes:
        name: in the model.
        shape: as `[out, in]` where it is a Linear's, `[E, out, in]` where experts share it.
        file: its name there, with its suffix; empty where the `gguf` package knows none.
        config: of the language model.
    """

    name: str
    shape: tuple[int, ...]
    file: str
    config: Any

    @property
    def block(self) -> str:
        """The number of its decoder block: the first in its name."""
        numbers = re.search(r"\.(\d+)\.", f".{self.name}")
        return numbers[1] if numbers else ""

    @property
    def suffix(self) -> str:
        """`.bias` or `.weight`."""
        return ".bias" if self.name.endswith("bias") else ".weight"


Placing = Callable[[Named], list[Place]]


@dataclass(frozen=True)
class Rule:
    """What happens to the tensors whose names in the model a pattern finds.

    Attributes:
        pattern: a regular expression, searched for in the name.
        places: where such a tensor goes.
    """

    pattern: str
    places: Placing

    def fits(self, tensor: Named) -> bool:
        """Whether it is about this tensor."""
        return re.search(self.pattern, tensor.name) is not None


def as_it_is(tensor: Named) -> list[Place]:
    """The whole tensor, under the name that the `gguf` package knows."""
    return [Place(tensor.file)]


def nowhere(tensor: Named) -> list[Place]:
    """The file has no use for it."""
    return []


def plus_one(tensor: Named) -> list[Place]:
    """A norm that multiplies by 1 + weight: llama.cpp multiplies by what is stored."""
    return [Place(tensor.file, plus=1.0)]


def named(file: str) -> Placing:
    """The whole tensor, under a name that the `gguf` package does not know for it.

    Args:
        file: `{block}` in it is the number of the decoder block.
    """
    return lambda tensor: [Place(file.format(block=tensor.block))]


def pairs(heads: str) -> Placing:
    """Queries or keys whose rotary embedding takes neighbours.

    Args:
        heads: the setting that says how many.
    """
    return lambda tensor: [Place(tensor.file, in_pairs(tensor.shape[0], getattr(tensor.config, heads)))]


def fused(groups: Callable[[Any], int], sizes: Callable[[Any], tuple[int, ...]]) -> Placing:
    """Queries, keys and values in one matrix, head by head or group by group: in the file kind by kind.

    Args:
        groups: how many there are, of a config.
        sizes: how many heads of queries, keys and values one has, of a config.
    """

    def places(tensor: Named) -> list[Place]:
        count, heads = groups(tensor.config), sizes(tensor.config)
        width = tensor.shape[0] // (count * sum(heads))
        return [Place(tensor.file, by_kind(count, tuple(width * number for number in heads)))]

    return places


def through(change: str) -> Placing:
    """The whole tensor, with its numbers changed.

    Args:
        change: a key of `moving.CHANGES`.
    """
    return lambda tensor: [Place(tensor.file, through=change)]


def of_head(file: str) -> Placing:
    """One of several vectors that the file has as rows of one matrix; which, is the last number in its name.

    Args:
        file: the matrix, `{block}` in it being the number of the decoder block.
    """
    return lambda tensor: [
        Place(file.format(block=tensor.block), expert=int(re.findall(r"\.(\d+)\.", tensor.name)[-1]))
    ]


def _each_expert(tensor: Named, *parts: tuple[str, tuple[int, int, int] | None]) -> list[Place]:
    return [
        Place(f"blk.{tensor.block}.{file}{tensor.suffix}", None if part is None else between(*part), expert)
        for expert in range(tensor.shape[0])
        for file, part in parts
    ]


def gate_and_up(tensor: Named) -> list[Place]:
    """Gate and up of all experts: the upper halves of their matrices in one tensor, the lower ones in another."""
    rows = tensor.shape[1]
    return _each_expert(tensor, ("ffn_gate_exps", (0, rows // 2, 1)), ("ffn_up_exps", (rows // 2, rows, 1)))


def gate_and_up_in_turn(tensor: Named) -> list[Place]:
    """The same where the model has a row of gate and one of up in turn."""
    rows = tensor.shape[1]
    return _each_expert(tensor, ("ffn_gate_exps", (0, rows, 2)), ("ffn_up_exps", (1, rows, 2)))


def down(tensor: Named) -> list[Place]:
    """The down projections of all experts."""
    return _each_expert(tensor, ("ffn_down_exps", None))


EXPERTS = (
    Rule(r"\.experts\.gate_up_proj(_bias)?$", gate_and_up),
    Rule(r"\.experts\.down_proj(_bias)?$", down),
)
"""Mixtures as transformers keeps them: `[E, 2I, H]` with gate before up, and `[E, H, I]`."""
