"""Mixtures of types: which tensor of a file gets which; the rules of llama.cpp.

A name like Q4_K_M is no type but a rule: most matrices are q4_k, values and down projections of some blocks q6_k, the
head (or the embedding that it is tied to) q6_k. The rules are those of llama.cpp's quantizer (`llama-quant.cpp`), so a
file of ours is as large as its own of the same name. Those for particular models (70B, GLM) are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from roundel.grid.block_types import BLOCK_TYPES, BlockTypeName, fitting

# fmt: off
MixtureName = Literal[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m",
    "q5_k_s", "q5_k_m", "q6_k",
    "even_q2_k", "even_q3_k_m", "even_q4_0", "even_q4_k_m", "even_q5_k_m", "even_q6_k",
]
# fmt: on
_EVEN = "even_"


@dataclass(frozen=True)
class Spot:
    """A matrix of a block.

    Attributes:
        role: what it is to its block (model/roles.py).
        block: index.
        blocks: how many there are.
        sharing: query heads that share a head of keys and values.
        experts: of a layer; 1: it is no mixture of experts.
        falcon: of that architecture, which has rules of its own.
    """

    role: str
    block: int
    blocks: int
    sharing: int = 1
    experts: int = 1
    falcon: bool = False

    @property
    def first_eighth(self) -> bool:
        """Whether it is among the first blocks."""
        return self.block < self.blocks // 8

    @property
    def favoured(self) -> bool:
        """Blocks that get more bits: the first and the last eighth, and every third between them."""
        eighth = self.blocks // 8
        last = self.block >= 7 * self.blocks // 8
        return self.first_eighth or last or (self.block - eighth) % 3 == 2


@dataclass(frozen=True)
class Matrix:
    """A matrix that a mixture gives a type.

    Attributes:
        name: of its layer.
        shape: (out, in), the rows whole blocks of some type.
        spot: in a block; None: outside of the blocks.
        head: outside of them, whether it is multiplied by: the head, or an embedding that the head is tied to.
        looked_up: outside of them, whether it is the embedding.
        kept: its type in its own file, where it can stay as it is.
    """

    name: str
    shape: tuple[int, int]
    spot: Spot | None
    head: bool = False
    looked_up: bool = False
    kept: str | None = None

    def bytes_of(self, name: BlockTypeName) -> int:
        """In a type that its rows admit."""
        block = BLOCK_TYPES[name]
        return self.shape[0] * self.shape[1] // block.block * block.bytes


Rule = Callable[[Spot], BlockTypeName]


def _more(where: Callable[[Spot], bool], more: BlockTypeName, less: BlockTypeName) -> Rule:
    return lambda spot: more if where(spot) else less


def _always(name: BlockTypeName) -> Rule:
    return lambda spot: name


@dataclass(frozen=True)
class Mixture:
    """A rule.

    Attributes:
        type: of most matrices.
        roles: types of others.
        many_experts: of the output of attention where a layer has eight experts.
    """

    type: BlockTypeName
    roles: Mapping[str, Rule] = field(default_factory=dict)
    many_experts: BlockTypeName | None = None

    def type_of(self, matrix: Matrix) -> BlockTypeName:
        """The type of a matrix, or the one on which it falls back."""
        width = matrix.shape[1]
        spot = matrix.spot
        wanted = self.type_outside(width, head=matrix.head) if spot is None else self.type_at(spot)
        found = fitting(wanted, width)
        assert found is not None
        return found

    def type_at(self, spot: Spot) -> BlockTypeName:
        """The type of a matrix."""
        if spot.experts == 8 and spot.role in ("value", "key"):
            return "q8_0"
        if spot.experts == 8 and spot.role == "output" and self.many_experts is not None:
            return self.many_experts
        return self.roles.get(spot.role, _always(self.type))(spot)

    def type_outside(self, in_features: int, *, head: bool) -> BlockTypeName:
        """The type of the embedding, or of the head (`head`: of an embedding that the head is tied to as well).

        Args:
            in_features: weights of a row.
            head: whether it is the head.
        """
        if not head:
            return self.type
        whole = in_features % BLOCK_TYPES[self.type].block == 0
        return "q6_k" if whole and self.type != "q8_0" else "q8_0"


def is_even(name: str) -> bool:
    """Whether a mixture is one of ours (even.py)."""
    return name.startswith(_EVEN)


def base_of(name: str) -> Mixture:
    """llama.cpp's mixture of that name, or of that size."""
    return MIXTURES[name.removeprefix(_EVEN)]


def _down_of_q3_k_m(spot: Spot) -> BlockTypeName:
    if spot.block < spot.blocks // 16:
        return "q5_k"
    return "q3_k" if spot.falcon and not spot.favoured else "q4_k"


def _down_of_q4_k_m(spot: Spot) -> BlockTypeName:
    if not spot.falcon:
        return "q6_k" if spot.favoured else "q4_k"
    if spot.block < spot.blocks // 16:
        return "q6_k"
    return "q5_k" if spot.favoured else "q4_k"


def _favoured(more: BlockTypeName, less: BlockTypeName) -> Rule:
    return _more(lambda spot: spot.favoured, more, less)


MIXTURES: dict[str, Mixture] = {
    "q4_0": Mixture("q4_0"),
    "q4_1": Mixture("q4_1"),
    "q5_0": Mixture("q5_0"),
    "q5_1": Mixture("q5_1"),
    "q8_0": Mixture("q8_0"),
    "q2_k": Mixture(
        "q2_k",
        {
            "value": _more(lambda spot: spot.sharing >= 4, "q4_k", "q3_k"),
            "down": _always("q3_k"),
            "output": _more(lambda spot: spot.falcon, "q2_k", "q3_k"),
        },
        many_experts="q5_k",
    ),
    "q2_k_s": Mixture(
        "q2_k",
        {
            "value": _more(lambda spot: spot.sharing >= 4, "q4_k", "q2_k"),
            "down": _more(lambda spot: spot.first_eighth, "q4_k", "q2_k"),
        },
    ),
    "q3_k_s": Mixture("q3_k", many_experts="q5_k"),
    "q3_k_m": Mixture(
        "q3_k",
        {
            "value": _more(lambda spot: spot.block < 2, "q5_k", "q4_k"),
            "down": _down_of_q3_k_m,
            "output": _more(lambda spot: spot.falcon, "q3_k", "q4_k"),
        },
        many_experts="q5_k",
    ),
    "q3_k_l": Mixture(
        "q3_k",
        {
            "value": _always("q5_k"),
            "down": _more(lambda spot: spot.falcon, "q4_k", "q5_k"),
            "output": _more(lambda spot: spot.falcon, "q4_k", "q5_k"),
        },
    ),
    "q4_k_s": Mixture(
        "q4_k",
        {
            "value": _more(lambda spot: spot.block < 4, "q5_k", "q4_k"),
            "down": _more(lambda spot: spot.first_eighth and not spot.falcon, "q5_k", "q4_k"),
        },
        many_experts="q5_k",
    ),
    "q4_k_m": Mixture(
        "q4_k",
        {"value": _favoured("q6_k", "q4_k"), "down": _down_of_q4_k_m},
        many_experts="q5_k",
    ),
    "q5_k_s": Mixture("q5_k"),
    "q5_k_m": Mixture(
        "q5_k",
        {
            "value": _favoured("q6_k", "q5_k"),
            "down": _favoured("q6_k", "q5_k"),
        },
    ),
    "q6_k": Mixture("q6_k"),
}
assert MIXTURES.keys() == {name for name in get_args(MixtureName) if not is_even(name)}
