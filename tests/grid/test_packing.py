import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundel.grid.packing import pack, unpack
from roundel.grid.words import packed_words


def codes_of(rows: int, count: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, count), generator=generator, dtype=torch.uint8)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 131), st.integers(0, 2**31))
def test_unpack_undoes_pack(bits: int, rows: int, count: int, seed: int) -> None:
    codes = codes_of(rows, count, bits, seed)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, packed_words(count, bits))
    assert torch.equal(unpack(words, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_one_little_endian_bit_stream_per_row(bits: int) -> None:
    codes = codes_of(3, 77, bits, seed=bits)
    stream = ((codes.numpy()[:, :, None] >> np.arange(bits)) & 1).reshape(3, -1)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    words = np.packbits(stream.astype(np.uint8), axis=1, bitorder="little").view("<i4")
    assert np.array_equal(pack(codes, bits).numpy(), words)


@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_packed_holds_no_more_memory_than_it_needs(rows: int) -> None:
    """Files and their shards count the storage of a tensor, not what is seen of it."""
    for bits in range(1, 9):
        packed = pack(codes_of(rows, 77, bits, seed=bits), bits)
        assert packed.untyped_storage().nbytes() == packed.numel() * packed.element_size()


def test_nothing_is_wasted() -> None:
    for bits in range(1, 9):
        assert packed_words(32 * 7, bits) == 7 * bits
