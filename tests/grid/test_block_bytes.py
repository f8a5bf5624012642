"""Every type x shapes and kinds of weights: the bytes decode to the very weights, by the gguf package's own rules."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roundel.errors import FormatError
from roundel.grid.block_bytes import from_bytes, to_bytes
from roundel.grid.block_types import BLOCK_TYPES, fitting
from roundel.grid.scheme import Scheme
from roundel.methods.rtn import make_start

TYPES = sorted(BLOCK_TYPES)


def decoded(rows: torch.Tensor, name: str) -> torch.Tensor:
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    return torch.from_numpy(gguf.dequantize(rows.numpy(), kind).copy())


def weights(out: int, blocks: int, name: str, seed: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, blocks * BLOCK_TYPES[name].block, generator=generator) * 0.03
    if kind == "zeros":
        weight[:, : BLOCK_TYPES[name].block] = 0
    elif kind == "positive":
        weight = weight.abs() + 0.1
    elif kind == "outliers":
        weight[:, ::7] *= 100
    elif kind == "tiny":
        weight *= 1e-6
    elif kind == "constant":
        weight[:] = 0.25
    return weight


@settings(max_examples=60)
@given(
    name=st.sampled_from(TYPES),
    out=st.integers(1, 5),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["plain", "zeros", "positive", "outliers", "tiny", "constant"]),
    fit=st.sampled_from(["minmax", "search"]),
)
def test_bytes_decode_to_the_very_weights(
    name: str, out: int, blocks: int, seed: int, kind: str, fit: str
) -> None:
    scheme, weight = Scheme(type=name), weights(out, blocks, name, seed, kind)
    quantized = make_start(weight, scheme, fit, None).quantize(weight, scheme)
    rows = to_bytes(quantized)
    assert rows.numel() * 8 == quantized.stored_bits()
    assert torch.equal(decoded(rows, name), quantized.dequantize())
    assert from_bytes(rows, name).equals(quantized)
    assert torch.isfinite(quantized.dequantize()).all()


@settings(max_examples=40)
@given(
    name=st.sampled_from(TYPES), out=st.integers(1, 3), blocks=st.integers(1, 3), seed=st.integers(0, 1000)
)
@example(name="q4_k", out=1, blocks=1, seed=68)  # a minimum that is a signalling NaN
def test_any_bytes_are_read_as_the_package_reads_them(name: str, out: int, blocks: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 256, (out * blocks, BLOCK_TYPES[name].bytes), np.uint8)
    stream = torch.from_numpy(rows.reshape(out, -1))
    ours, theirs = from_bytes(stream, name).dequantize(), decoded(stream, name)
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert torch.equal(to_bytes(from_bytes(stream, name)), stream)


def test_sizes_are_the_packages() -> None:
    for name, block in BLOCK_TYPES.items():
        kind = getattr(gguf.GGMLQuantizationType, name.upper())
        assert gguf.GGML_QUANT_SIZES[kind] == (block.block, block.bytes)


def test_rows_of_any_width_get_a_type_of_whole_blocks_or_none() -> None:
    for name in TYPES:
        for width in (32, 64, 256, 576, 640, 768, 100):
            found = fitting(name, width)
            if found is None:
                assert width % 32
            else:
                assert width % BLOCK_TYPES[found].block == 0
                assert (found == name) == (width % BLOCK_TYPES[name].block == 0)


def test_what_no_type_can_say_is_refused() -> None:
    weight = weights(2, 1, "q4_0", 0, "plain")
    scheme = Scheme(bits=4, group_size=32)
    with pytest.raises(FormatError, match="GGUF's types is expected"):
        to_bytes(make_start(weight, scheme, "minmax", None).quantize(weight, scheme))
