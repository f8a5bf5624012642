"""llama.cpp's mixtures: which tensor of a file gets which type.

A name like Q4_K_M is no type but a rule: most matrices are q4_k, values and down projections of some blocks q6_k, the
head (or the embedding that it is tied to) q6_k. The rules are those of llama.cpp's quantizer (`llama-quant.cpp`), so a
file of ours is as large as its own of the same name. Those for particular models (70B, GLM) are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from roundel.grid.block_types import BLOCK_TYPES, BlockTypeName

# fmt: off
MixtureName = Literal[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m",
    "q5_k_s", "q5_k_m", "q6_k",
]
# fmt: on


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
assert MIXTURES.keys() == set(get_args(MixtureName))
