"""Dense bit-packing of codes into 32-bit words, for every width from 1 to 8.

Code i of a row takes bits [i*b, (i+1)*b) of the row's little-endian bit stream, whose words are int32. For
2, 4 and 8 bits that is the usual "8 nibbles in an int32"; for 3, 5, 6 and 7 a code may span two words and
nothing is wasted: 32 codes take exactly b words.
"""

import torch
import torch.nn.functional as F

from roundel.grid.words import WORD, packed_words


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integers.

    Args:
        codes: `[rows, count]`, any integer dtype, values in [0, 2^bits - 1].
        bits: 1 to 8.

    Returns:
        `[rows, ceil(count * bits / 32)]` int32.
    """
    rows, count = codes.shape
    blocks = F.pad(codes.to(torch.int64), (0, -count % WORD)).view(rows, -1, WORD)
    words = torch.zeros(rows, blocks.shape[1], bits + 1, dtype=torch.int64, device=codes.device)
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        value = blocks[:, :, i] << shift
        words[:, :, word] |= value & 0xFFFFFFFF
        words[:, :, word + 1] |= value >> WORD
    words = words[:, :, :bits].reshape(rows, -1)[:, : packed_words(count, bits)]
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Undo `pack`: `[rows, words]` int32 to `[rows, count]` uint8."""
    rows = words.shape[0]
    blocks = -(-count // WORD)
    stream = F.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, blocks * bits - words.shape[1]))
    stream = F.pad(stream.view(rows, blocks, bits), (0, 1))
    codes = torch.empty(rows, blocks, WORD, dtype=torch.uint8, device=words.device)
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        value = (stream[:, :, word] >> shift) | (stream[:, :, word + 1] << (WORD - shift))
        codes[:, :, i] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.view(rows, -1)[:, :count].contiguous()
