"""Weights of GGUF's types as the bytes of their blocks, and back.

A block holds everything of its 32 or 256 weights; a row is its blocks, a matrix its rows
(https://github.com/ggml-org/ggml, ggml-common.h). Parts of codes lie interleaved: byte l of a part holds that of weight
l, and above it those of the weights one, two, three strides further on, so that one shift serves a whole vector.

    type   bytes of a block, in order
    q4_0   d, 16 of nibbles (stride 16)
    q4_1   d, m, 16 of nibbles
    q5_0   d, 4 of fifth bits, 16 of nibbles
    q5_1   d, m, 4 of fifth bits, 16 of nibbles
    q8_0   d, 32 signed
    q2_k   16 of (a, b), 64 of pairs (stride 32), d, e
    q3_k   32 of third bits (stride 32), 64 of pairs, 12 of a, d
    q4_k   d, e, 12 of (a, b), 128 of nibbles (stride 32)
    q5_k   d, e, 12 of (a, b), 32 of fifth bits, 128 of nibbles
    q6_k   128 of nibbles (stride 64), 64 of upper pairs (stride 32), 16 of a, d
"""

from collections.abc import Callable

import torch

from roundel.errors import FormatError
from roundel.grid.block_types import BlockTypeName
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.super_blocks import SuperBlocks, code_limits
from roundel.grid.two_level import Statistic


def to_bytes(weight: QuantizedWeight) -> torch.Tensor:
    """`[out, bytes of a row]` uint8.

    Raises:
        FormatError: there is more to the weight than a type can say.
    """
    scheme, block = weight.scheme, weight.scheme.block_type
    if scheme.type is None or block is None or weight.outliers is not None or weight.order is not None:
        raise FormatError(
            "a weight of one of GGUF's types is expected, without outliers and with its columns in order"
        )
    out, width = weight.shape
    blocks = out * width // block.block
    codes = weight.codes.reshape(blocks, block.block)
    scale, low = _statistic(weight.scale, blocks), None
    if weight.zero is not None:
        low = _statistic(weight.zero, blocks)
    parts = _WRITERS[scheme.type](codes, scale, low)
    return torch.cat([part.reshape(blocks, -1) for part in parts], 1).view(out, -1)


def from_bytes(rows: torch.Tensor, name: BlockTypeName) -> QuantizedWeight:
    """Undo `to_bytes`: `[out, bytes of a row]` uint8."""
    scheme = Scheme(type=name)
    block = scheme.block_type
    assert block is not None
    out = len(rows)
    stream = rows.contiguous().view(-1, block.bytes)
    codes, scale, low = _READERS[name](_Cut(stream))
    signed = not block.minima
    return QuantizedWeight(
        codes.reshape(out, -1),
        _restored(scale, out, block.scale_bits, signed),
        None if low is None else _restored(low, out, block.scale_bits, signed),
        scheme,
    )


Blocks = tuple[torch.Tensor, torch.Tensor | None]
"""Of every block: the number in fp16, `[N, 1]`, and the codes, `[N, k]` uint8 counted from the smallest."""
Read = tuple[torch.Tensor, Blocks, Blocks | None]


def _statistic(statistic: Statistic, blocks: int) -> Blocks:
    if isinstance(statistic, SuperBlocks):
        codes = (statistic.codes.to(torch.int16) - statistic.limits[0]).to(torch.uint8)
        return statistic.scale.reshape(blocks, 1), codes.reshape(blocks, -1)
    assert isinstance(statistic, torch.Tensor)
    return statistic.reshape(blocks, 1), None


def _restored(stored: Blocks, out: int, bits: int, signed: bool) -> Statistic:
    number, codes = stored
    if codes is None:
        return number.reshape(out, -1)
    smallest = code_limits(bits, signed)[0]
    codes = (codes.to(torch.int16) + smallest).to(torch.int8 if signed else torch.uint8)
    return SuperBlocks(codes.reshape(out, -1), number.reshape(out, -1), bits)


class _Cut:
    """Takes the parts of blocks, `[N, bytes]`, one after the other."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self.blocks, self.place = blocks, 0

    def take(self, count: int) -> torch.Tensor:
        part = self.blocks[:, self.place : self.place + count]
        self.place += count
        return part

    def number(self) -> torch.Tensor:
        return self.take(2).contiguous().view(torch.float16)


def _number(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().view(torch.uint8)


def _opposite(value: torch.Tensor) -> torch.Tensor:
    """fp16 with the other sign. By its bit: arithmetic would write NaN of other bytes than it read."""
    return (value.contiguous().view(torch.int16) ^ -(2**15)).view(torch.float16)


def _interleave(parts: torch.Tensor, bits: int) -> torch.Tensor:
    """`[..., p, L]` with values of some bits to `[..., L]` bytes, the first part lowest."""
    shifts = torch.arange(parts.shape[-2], dtype=torch.uint8, device=parts.device)[:, None] * bits
    # Parts do not overlap: their sum is what all of them say.
    return (parts << shifts).sum(-2, dtype=torch.uint8)


def _part(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Undo `_interleave`: `[..., L]` bytes to `[..., p, L]`."""
    shifts = torch.arange(count, dtype=torch.uint8, device=packed.device)[:, None] * bits
    return (packed.unsqueeze(-2) >> shifts) & (2**bits - 1)


# Codes of blocks [N, block], part by part. Each pair undoes itself.
def _nibbles(codes: torch.Tensor, stride: int) -> torch.Tensor:
    return _interleave((codes & 15).view(len(codes), -1, 2, stride), 4).flatten(1)


def _from_nibbles(packed: torch.Tensor, stride: int) -> torch.Tensor:
    return _part(packed.reshape(len(packed), -1, stride), 4, 2).flatten(1)


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    return _interleave(codes.view(len(codes), -1, 4, 32), 2).flatten(1)


def _from_pairs(packed: torch.Tensor) -> torch.Tensor:
    return _part(packed.reshape(len(packed), -1, 32), 2, 4).flatten(1)


def _bits_in_a_row(bits: torch.Tensor) -> torch.Tensor:
    return _interleave(bits.view(len(bits), -1, 8, 1), 1).flatten(1)


def _from_bits_in_a_row(packed: torch.Tensor) -> torch.Tensor:
    return _part(packed.unsqueeze(-1), 1, 8).flatten(1)


def _bits_apart(bits: torch.Tensor) -> torch.Tensor:
    return _interleave(bits.view(len(bits), 8, 32), 1)


def _from_bits_apart(packed: torch.Tensor) -> torch.Tensor:
    return _part(packed, 1, 8).flatten(1)


def _six_bit_pairs(scale: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Eight scales and minima of 6 bits: four of each whole, of the others nibbles, and pairs above the first."""
    first = torch.cat([scale[:, :4], low[:, :4]], 1)
    upper = torch.cat([scale[:, 4:] >> 4, low[:, 4:] >> 4], 1)
    return torch.cat([first | upper << 6, (scale[:, 4:] & 15) | (low[:, 4:] << 4)], 1)


def _from_six_bit_pairs(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, upper, nibbles = packed[:, :8] & 63, packed[:, :8] >> 6, packed[:, 8:]
    scale = torch.cat([first[:, :4], (nibbles & 15) | upper[:, :4] << 4], 1)
    return scale, torch.cat([first[:, 4:], (nibbles >> 4) | upper[:, 4:] << 4], 1)


def _six_bits(scale: torch.Tensor) -> torch.Tensor:
    """Sixteen scales of 6 bits: nibbles, then pairs."""
    nibbles = _interleave((scale & 15).view(len(scale), 2, 8), 4)
    return torch.cat([nibbles, _interleave((scale >> 4).view(len(scale), 4, 4), 2)], 1)


def _from_six_bits(packed: torch.Tensor) -> torch.Tensor:
    return _part(packed[:, :8], 4, 2).flatten(1) | _part(packed[:, 8:], 2, 4).flatten(1) << 4


def _write_32(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    """q4_0, q4_1, q5_0, q5_1 but for the fifth bits."""
    return [_number(scale[0]), *([] if low is None else [_number(low[0])]), _nibbles(codes, 16)]


def _write_32_of_5(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    *numbers, nibbles = _write_32(codes, scale, low)
    return [*numbers, _bits_in_a_row(codes >> 4), nibbles]


def _write_q8_0(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    return [_number(scale[0]), codes ^ 128]  # two's complement


def _write_q2_k(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    assert scale[1] is not None
    assert low is not None
    assert low[1] is not None
    return [scale[1] | low[1] << 4, _pairs(codes), _number(scale[0]), _number(_opposite(low[0]))]


def _write_q3_k(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    assert scale[1] is not None
    return [_bits_apart(codes >> 2), _pairs(codes & 3), _six_bits(scale[1]), _number(scale[0])]


def _write_q4_k(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    assert scale[1] is not None
    assert low is not None
    assert low[1] is not None
    statistics = _six_bit_pairs(scale[1], low[1])
    return [_number(scale[0]), _number(_opposite(low[0])), statistics, _nibbles(codes, 32)]


def _write_q5_k(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    *statistics, nibbles = _write_q4_k(codes, scale, low)
    return [*statistics, _bits_apart(codes >> 4), nibbles]


def _write_q6_k(codes: torch.Tensor, scale: Blocks, low: Blocks | None) -> list[torch.Tensor]:
    assert scale[1] is not None
    return [_nibbles(codes, 64), _pairs(codes >> 4), scale[1] ^ 128, _number(scale[0])]


def _read_q4_0(cut: _Cut) -> Read:
    scale = cut.number()
    return _from_nibbles(cut.take(16), 16), (scale, None), None


def _read_q4_1(cut: _Cut) -> Read:
    scale, low = cut.number(), cut.number()
    return _from_nibbles(cut.take(16), 16), (scale, None), (low, None)


def _read_q5_0(cut: _Cut) -> Read:
    scale = cut.number()
    fifth = _from_bits_in_a_row(cut.take(4))
    return _from_nibbles(cut.take(16), 16) | fifth << 4, (scale, None), None


def _read_q5_1(cut: _Cut) -> Read:
    scale, low = cut.number(), cut.number()
    fifth = _from_bits_in_a_row(cut.take(4))
    return _from_nibbles(cut.take(16), 16) | fifth << 4, (scale, None), (low, None)


def _read_q8_0(cut: _Cut) -> Read:
    scale = cut.number()
    return cut.take(32) ^ 128, (scale, None), None


def _read_q2_k(cut: _Cut) -> Read:
    statistics, codes = cut.take(16), _from_pairs(cut.take(64))
    scale, low = cut.number(), cut.number()
    return codes, (scale, statistics & 15), (_opposite(low), statistics >> 4)


def _read_q3_k(cut: _Cut) -> Read:
    third, pairs = _from_bits_apart(cut.take(32)), _from_pairs(cut.take(64))
    statistics = _from_six_bits(cut.take(12))
    return pairs | third << 2, (cut.number(), statistics), None


def _read_q4_k(cut: _Cut) -> Read:
    scale, low = cut.number(), cut.number()
    a, b = _from_six_bit_pairs(cut.take(12))
    return _from_nibbles(cut.take(128), 32), (scale, a), (_opposite(low), b)


def _read_q5_k(cut: _Cut) -> Read:
    scale, low = cut.number(), cut.number()
    a, b = _from_six_bit_pairs(cut.take(12))
    fifth = _from_bits_apart(cut.take(32))
    return _from_nibbles(cut.take(128), 32) | fifth << 4, (scale, a), (_opposite(low), b)


def _read_q6_k(cut: _Cut) -> Read:
    nibbles, pairs = _from_nibbles(cut.take(128), 64), _from_pairs(cut.take(64))
    statistics = cut.take(16) ^ 128
    return nibbles | pairs << 4, (cut.number(), statistics), None


_WRITERS: dict[str, Callable[[torch.Tensor, Blocks, Blocks | None], list[torch.Tensor]]] = {
    "q4_0": _write_32,
    "q4_1": _write_32,
    "q5_0": _write_32_of_5,
    "q5_1": _write_32_of_5,
    "q8_0": _write_q8_0,
    "q2_k": _write_q2_k,
    "q3_k": _write_q3_k,
    "q4_k": _write_q4_k,
    "q5_k": _write_q5_k,
    "q6_k": _write_q6_k,
}
_READERS: dict[str, Callable[[_Cut], Read]] = {
    "q4_0": _read_q4_0,
    "q4_1": _read_q4_1,
    "q5_0": _read_q5_0,
    "q5_1": _read_q5_1,
    "q8_0": _read_q8_0,
    "q2_k": _read_q2_k,
    "q3_k": _read_q3_k,
    "q4_k": _read_q4_k,
    "q5_k": _read_q5_k,
    "q6_k": _read_q6_k,
}
