"""Checkpoints that are quantized already are read as their published formula says, computed here from their files."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.stored.forms import same, weight_of
from roundel.model.checkpoint import Entry
from roundel.model.source import open_source
from roundel.model.stored.float4 import exponents, unpack_float4
from roundel.model.stored.fp8 import Fp8
from zoo import zoo_model
from zoo.quantized import E2M1, NF4, awq, fp8, gptq, int8, nf4

pytestmark = pytest.mark.slow("builds and dequantizes sources of every form")


def test_blocks_at_the_edges_are_cut_off(tmp_path: Path) -> None:
    """48 rows in blocks of 32: the second has 16 (transformers 5.23 takes two of 24 for them)."""
    source = fp8(zoo_model("llama"), tmp_path / "source", (32, 64))
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    codes, scale = tensors[name].float(), tensors[f"{name}_scale_inv"]
    assert (codes.shape, scale.shape) == ((48, 96), (2, 2))
    wanted = torch.empty(48, 96)
    for i in range(48):
        for j in range(96):
            wanted[i, j] = codes[i, j] * scale[i // 32, j // 64]
    assert torch.equal(weight_of(source, name), wanted.bfloat16())


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_every_block_has_its_scale(rows: int, columns: int, block: tuple[int, int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randn(rows, columns, generator=draw).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=draw)
    form = Fp8({"quant_method": "fp8", "weight_block_size": list(block)})
    shapes = {"w.weight": codes.shape, "w.weight_scale_inv": scale.shape}
    kinds = {"w.weight": "F8_E4M3", "w.weight_scale_inv": "F32"}
    packed = form.weights({n: Entry(kinds[n], tuple(s), 0, 0) for n, s in shapes.items()}, lambda name: codes)
    assert packed["w.weight"].shape == (rows, columns)
    found = form.decode("w.weight", {"weight": codes, "scale": scale}, torch.float32)
    for i in range(rows):
        for j in range(columns):
            assert found[i, j] == codes[i, j].float() * scale[i // block[0], j // block[1]]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (4, 1)])
def test_scales_of_tensors_and_rows(shape: tuple[int, ...]) -> None:
    codes = torch.arange(12.0).view(4, 3).to(torch.float8_e4m3fn)
    scale = torch.rand(shape)
    found = Fp8({"quant_method": "fbgemm_fp8"}).decode("w", {"weight": codes, "scale": scale}, torch.float32)
    assert torch.equal(found, codes.float() * (scale if scale.numel() == 1 else scale.view(4, 1)))


def test_exponents_as_scales() -> None:
    """E8M0, as bytes and as the type that torch has for it: the oracle is torch's own conversion."""
    every = torch.arange(255, dtype=torch.uint8)
    typed = every.view(torch.float8_e8m0fnu)
    assert torch.equal(exponents(every), typed.float())
    assert torch.equal(exponents(typed), typed.float())
    assert exponents(torch.tensor([255], dtype=torch.uint8)).isnan().all()


def test_four_bit_floats() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    signed = [*E2M1, *(-value for value in E2M1)]
    assert unpack_float4(every).tolist() == [
        v for byte in range(256) for v in (signed[byte % 16], signed[byte // 16])
    ]


def numbers(words: list[int], bits: int) -> list[int]:
    """The codes of a stream of bits."""
    stream = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return [(stream >> (bits * place)) & (2**bits - 1) for place in range(32 * len(words) // bits)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", [False, True])
def test_gptq_is_codes_less_zeros_times_scales(bits: int, version: str, order: bool, tmp_path: Path) -> None:
    source = gptq(zoo_model("llama"), tmp_path / "source", bits, order=order, checkpoint_format=version)
    tensors = load_file(source / "model.safetensors")
    owner = "model.layers.0.self_attn.q_proj"
    codes = torch.tensor([numbers(column, bits) for column in tensors[f"{owner}.qweight"].t().tolist()])
    zeros = torch.tensor([numbers(row, bits) for row in tensors[f"{owner}.qzeros"].tolist()])
    zeros = zeros + (1 if version == "gptq" else 0)
    groups = tensors[f"{owner}.g_idx"].tolist()
    found = weight_of(source)
    assert found.dtype == torch.float16
    for channel, group in enumerate(groups):
        column = (codes[:, channel] - zeros[group]).half() * tensors[f"{owner}.scales"][group]
        assert torch.equal(found[:, channel], column)
    # And it is near what was packed, up to the steps of the grid.
    wanted = load_file(zoo_model("llama") / "model.safetensors")[f"{owner}.weight"]
    assert (found.float() - wanted).norm() < {2: 0.7, 3: 0.3, 4: 0.15, 8: 0.02}[bits] * wanted.norm()


def test_awq_equals_gptq_of_the_same_integers(tmp_path: Path) -> None:
    """Both packers round alike: the two layouts must give the same weights."""
    by_awq, by_gptq = awq(zoo_model("llama"), tmp_path / "a"), gptq(zoo_model("llama"), tmp_path / "g")
    same(open_source(str(by_awq)).model.state_dict(), open_source(str(by_gptq)).model.state_dict())


def test_autoround_writes_either(tmp_path: Path) -> None:
    kinds = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
    one, other = gptq(zoo_model("llama"), tmp_path / "a", **kinds), gptq(zoo_model("llama"), tmp_path / "g")
    same(open_source(str(one)).model.state_dict(), open_source(str(other)).model.state_dict())
    # Its own packing keeps zero points as they are.
    kinds = {"checkpoint_format": "gptq_v2", "quant_method": "auto-round", "packing_format": "auto_round"}
    own = gptq(zoo_model("llama"), tmp_path / "own", **kinds)
    same(open_source(str(own)).model.state_dict(), open_source(str(other)).model.state_dict())


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_is_the_nearest_value_times_the_largest_of_its_block(nested: bool, tmp_path: Path) -> None:
    source = nf4(zoo_model("llama"), tmp_path / "source", nested=nested)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = load_file(source / "model.safetensors")
    state = json.loads(bytes(tensors[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
    codes = [half for byte in tensors[name].flatten().tolist() for half in (byte >> 4, byte & 15)]
    factors = tensors[f"{name}.absmax"]
    if nested:
        table, outer = tensors[f"{name}.nested_quant_map"], tensors[f"{name}.nested_absmax"]
        factors = torch.stack([table[int(c)] * outer[i // 256] for i, c in enumerate(factors)])
        factors = factors + state["nested_offset"]
    wanted = torch.stack([torch.tensor(NF4)[code] * factors[i // 64] for i, code in enumerate(codes)])
    assert torch.equal(weight_of(source, name), wanted.view(96, 96).bfloat16())


def test_int8_is_integers_times_the_maxima_of_rows(tmp_path: Path) -> None:
    source = int8(zoo_model("llama"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    owner = "model.layers.0.self_attn.q_proj"
    wanted = tensors[f"{owner}.weight"].double() * tensors[f"{owner}.SCB"].double().view(-1, 1) / 127
    assert (weight_of(source).double() - wanted).abs().max() <= wanted.abs().max() * 2**-11
