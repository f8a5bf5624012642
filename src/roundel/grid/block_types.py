"""The types of GGUF files as grids: each fixes bits, group size and how scales are stored.

    q4_0 q5_0 q8_0    w = s (q - z)        z = 2^(bits-1), s in fp16 for 32 weights
    q4_1 q5_1         w = s q + m          s, m in fp16 for 32 weights
    q2_k q4_k q5_k    w = s q + m          s = d a, m = -e b in super-blocks of 256: codes a and b for each group,
                                           d and e in fp16 for all of them
    q3_k q6_k         w = s (q - z)        s = d a, the code a signed

m, the minimum, is the value of code 0. A super-block lies along the row: it is a second level whose tiles are 8 or 16
neighbouring groups of one row, where SpQR's tiles are rows of one column group. The minimum is never above zero there.

iq4_nl and its kin are no grids in this sense: their sixteen values are not evenly spaced, so neither ranges nor offsets
in codes mean what they mean here.
"""

from dataclasses import dataclass
from typing import Literal, get_args

BlockTypeName = Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]


@dataclass(frozen=True)
class BlockType:
    """One type.

    Attributes:
        bits: of a code.
        group: weights that share a scale.
        minima: whether code 0 has a value of its own (else the middle code is zero).
        bytes: of a block: of a group, or of a super-block.
        groups: of a super-block; 1: there is none.
        scale_bits: of the codes of scales, and of minima, in a super-block.
        fallback: for rows that are no multiple of a super-block, as llama.cpp's quantizer has it.
    """

    bits: int
    group: int
    minima: bool
    bytes: int
    groups: int = 1
    scale_bits: int = 16
    fallback: BlockTypeName | None = None

    @property
    def block(self) -> int:
        """Weights of a block; a row holds whole ones."""
        return self.group * self.groups

    @property
    def bits_per_weight(self) -> float:
        """Everything counted."""
        return 8 * self.bytes / self.block


BLOCK_TYPES: dict[str, BlockType] = {
    "q4_0": BlockType(4, 32, minima=False, bytes=18),
    "q4_1": BlockType(4, 32, minima=True, bytes=20),
    "q5_0": BlockType(5, 32, minima=False, bytes=22),
    "q5_1": BlockType(5, 32, minima=True, bytes=24),
    "q8_0": BlockType(8, 32, minima=False, bytes=34),
    "q2_k": BlockType(2, 16, minima=True, bytes=84, groups=16, scale_bits=4, fallback="q4_0"),
    "q3_k": BlockType(3, 16, minima=False, bytes=110, groups=16, scale_bits=6, fallback="q4_0"),
    "q4_k": BlockType(4, 32, minima=True, bytes=144, groups=8, scale_bits=6, fallback="q5_0"),
    "q5_k": BlockType(5, 32, minima=True, bytes=176, groups=8, scale_bits=6, fallback="q5_1"),
    "q6_k": BlockType(6, 16, minima=False, bytes=210, groups=16, scale_bits=8, fallback="q8_0"),
}
assert BLOCK_TYPES.keys() == set(get_args(BlockTypeName))


def fitting(name: BlockTypeName, in_features: int) -> BlockTypeName | None:
    """The type itself, or what takes its place, where rows have so many weights; None: no type has such rows."""
    choice: BlockTypeName | None = name
    while choice is not None and in_features % BLOCK_TYPES[choice].block:
        choice = BLOCK_TYPES[choice].fallback
    return choice


def type_of_bits(bits: int, in_features: int) -> BlockTypeName:
    """The type with codes of so many bits for rows of so many weights; of more where there is none of 6."""
    found: dict[int, tuple[BlockTypeName, BlockTypeName]] = {
        4: ("q4_k", "q4_1"),
        5: ("q5_k", "q5_1"),
        6: ("q6_k", "q8_0"),
        8: ("q8_0", "q8_0"),
    }
    of_super_blocks, plain = found[bits]
    return plain if in_features % BLOCK_TYPES[of_super_blocks].block else of_super_blocks
