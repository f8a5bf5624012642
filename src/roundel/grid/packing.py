"""Dense bit-packing of codes into 32-bit words, for every width from 1 to 8.

Code i of a row takes bits [i*b, (i+1)*b) of the row's little-endian bit stream, whose words are int32. For
2, 4 and 8 bits that is the usual "8 nibbles in an int32"; for 3, 5, 6 and 7 a code may span two words and
nothing is wasted: 32 codes take exactly b words. Computed in bytes, where it repeats sooner: 8 codes take b of them.
"""

import torch
import torch.nn.functional as F

from roundel.grid.words import WORD, packed_words

_BYTE = 8
_WORD_BYTES = WORD // _BYTE


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integers.

    Args:
        codes: `[rows, count]`, any integer dtype, values in [0, 2^bits - 1].
        bits: 1 to 8.

    Returns:
        `[rows, ceil(count * bits / 32)]` int32.
    """
    rows, count = codes.shape
    blocks = F.pad(codes.to(torch.int16), (0, -count % WORD)).view(rows, -1, _BYTE)
    stream = torch.zeros(rows, blocks.shape[1], bits + 1, dtype=torch.int16, device=codes.device)
    for i in range(_BYTE):
        byte, shift = divmod(i * bits, _BYTE)
        value = blocks[:, :, i] << shift
        stream[:, :, byte] |= value & 0xFF
        stream[:, :, byte + 1] |= value >> _BYTE
    used = packed_words(count, bits) * _WORD_BYTES
    packed = stream[:, :, :bits].to(torch.uint8).reshape(rows, -1)[:, :used]
    # A copy: of a single row the cut would be contiguous, and keep memory that files and their shards count as its own.
    return packed.clone(memory_format=torch.contiguous_format).view(torch.int32)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Undo `pack`: `[rows, words]` int32 to `[rows, count]` uint8."""
    rows = words.shape[0]
    blocks = -(-count // WORD) * _WORD_BYTES
    stream = words.contiguous().view(torch.uint8).to(torch.int16)
    stream = F.pad(stream, (0, blocks * bits - stream.shape[1])).view(rows, blocks, bits)
    stream = F.pad(stream, (0, 1))
    codes = torch.empty(rows, blocks, _BYTE, dtype=torch.uint8, device=words.device)
    for i in range(_BYTE):
        byte, shift = divmod(i * bits, _BYTE)
        value = (stream[:, :, byte] >> shift) | (stream[:, :, byte + 1] << (_BYTE - shift))
        codes[:, :, i] = value & (2**bits - 1)
    return codes.view(rows, -1)[:, :count].contiguous()
