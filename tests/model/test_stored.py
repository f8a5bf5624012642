"""Checkpoints that are quantized already are read as if they were not.

The oracles are transformers' own dequantized model where it has one on this machine, and else the published formula,
computed here from what a plain packer put into the files (zoo/quantized.py). What is read must be the same whole and
streamed, and go through every format.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

import roundel
from model.test_extra_tensors import copy_with, prediction_block, stored
from roundel.errors import ModelError, Stopped
from roundel.formats.reload import unpack_model
from roundel.model.checkpoint import Entry
from roundel.model.source import open_skeleton, open_source
from roundel.model.stored.float4 import exponents, unpack_float4
from roundel.model.stored.fp8 import Fp8
from roundel.system.progress import Progress
from roundel.workflows.open import open_model
from zoo import zoo_model
from zoo.quantized import E2M1, NF4, awq, fp8, gptq, int8, mxfp4, nf4

pytestmark = pytest.mark.slow("builds and dequantizes sources of every form")

Make = Callable[[Path, Path], Path]
FORMS: dict[str, tuple[str, Make]] = {
    "fp8": ("llama", lambda model, folder: fp8(model, folder, (16, 32))),
    "fp8, experts": ("deepseek_v3", fp8),
    "mxfp4": ("gpt_oss", mxfp4),
    "gptq": ("llama", gptq),
    "gptq, 8 bits, by size": ("llama", lambda model, folder: gptq(model, folder, 8, order=True)),
    "gptq, experts": ("qwen3_moe", gptq),
    "awq": ("llama", awq),
    "nf4": ("llama", lambda model, folder: nf4(model, folder, nested=False)),
    "nf4, twice": ("llama", lambda model, folder: nf4(model, folder, nested=True)),
    "int8": ("llama", int8),
}
RTN = {"method": "rtn", "bits": 4, "group_size": 32, "sym": True}


class Heard(Progress):
    """What a user is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, words: str) -> None:
        self.said.append(words)


def made(form: str, tmp_path: Path) -> Path:
    name, make = FORMS[form]
    return make(zoo_model(name), tmp_path / "source")


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("name", "make", "config"),
    [
        ("llama", lambda m, f: fp8(m, f, (16, 32)), FineGrainedFP8Config(dequantize=True)),
        ("deepseek_v3", fp8, FineGrainedFP8Config(dequantize=True)),
        ("qwen3_moe", fp8, FineGrainedFP8Config(dequantize=True)),
        ("gpt_oss", mxfp4, Mxfp4Config(dequantize=True)),
    ],
)
def test_it_is_what_transformers_dequantizes(name: str, make: Make, config: Any, tmp_path: Path) -> None:
    source = make(zoo_model(name), tmp_path / "source")
    theirs = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.bfloat16)
    ours = open_source(str(source)).model
    same(ours.state_dict(), theirs.state_dict())
    ids = torch.arange(16).view(1, -1)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def _weight(model: Path, name: str = "model.layers.0.self_attn.q_proj.weight") -> torch.Tensor:
    return open_source(str(model)).model.state_dict()[name]


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
    assert torch.equal(_weight(source, name), wanted.bfloat16())


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
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
    found = _weight(source)
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
    assert torch.equal(_weight(source, name), wanted.view(96, 96).bfloat16())


def test_int8_is_integers_times_the_maxima_of_rows(tmp_path: Path) -> None:
    source = int8(zoo_model("llama"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    owner = "model.layers.0.self_attn.q_proj"
    wanted = tensors[f"{owner}.weight"].double() * tensors[f"{owner}.SCB"].double().view(-1, 1) / 127
    assert (_weight(source).double() - wanted).abs().max() <= wanted.abs().max() * 2**-11


SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "4-bit groups": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
    ),
    "4-bit groups, zeros": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "8-bit channels": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "8-bit floats": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors_is_what_transformers_dequantizes(scheme: str, tmp_path: Path) -> None:
    """Written by the format's own library, as llm-compressor does; read by transformers with `dequantize`."""
    layout, weights = SCHEMES[scheme]
    model = AutoModelForCausalLM.from_pretrained(zoo_model("llama"), dtype=torch.bfloat16)
    groups: dict[str, Any] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    if layout == "int-quantized":  # the library's choice where inputs are integers too
        groups["group_0"]["input_activations"] = {"num_bits": 8, "strategy": "token", "dynamic": True}
    about = QuantizationConfig(
        config_groups=groups, ignore=["lm_head"], format=layout, quantization_status="frozen"
    )
    apply_quantization_config(model, about)
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            parts = module.weight.float().unflatten(
                1, (-1, weights.get("group_size") or module.weight.shape[1])
            )
            reach = 448 if weights.get("type") == "float" else 2 ** (weights["num_bits"] - 1) - 1
            module.weight_scale.data = (parts.abs().amax(-1) / reach).to(module.weight_scale.dtype)
            assert name != "lm_head"
    compressor = ModelCompressor(quantization_config=about)
    compressor.compress_model(model)
    source = tmp_path / "source"
    model.save_pretrained(source)
    words = json.loads((source / "config.json").read_text(encoding="utf-8"))
    words["quantization_config"] = {**about.model_dump(mode="json"), "quantization_status": "compressed"}
    words["quantization_config"]["quant_method"] = "compressed-tensors"
    (source / "config.json").write_text(json.dumps(words), encoding="utf-8")
    theirs = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=torch.bfloat16
    )
    opened = open_source(str(source))
    assert opened.read_from.startswith(f"read from compressed-tensors ({weights['num_bits']}-bit")
    assert ("its quantization of inputs is left out" in opened.read_from) == (layout == "int-quantized")
    same(opened.model.state_dict(), theirs.state_dict())
    streamed = open_source(str(source), stream_with=tmp_path / "unused")
    same(dict(streamed.storage.tensors(streamed.model)), theirs.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_streamed_it_is_the_same_and_no_file_is_written(form: str, tmp_path: Path) -> None:
    source = made(form, tmp_path)
    place = tmp_path / "converted"
    place.mkdir()
    streamed = open_source(str(source), stream_with=place)
    assert all(tensor.is_meta for tensor in streamed.model.parameters())
    whole = open_source(str(source))
    same(dict(streamed.storage.tensors(streamed.model)), whole.model.state_dict())
    assert not list(place.iterdir())
    assert not hasattr(whole.model.config, "quantization_config")
    assert not whole.extra


@pytest.mark.parametrize("form", FORMS)
def test_it_is_quantized_and_opens_again(form: str, tmp_path: Path) -> None:
    """Through every format that carries the model, streamed and whole to the same bytes."""
    source = made(form, tmp_path)
    before = {path: path.read_bytes() for path in source.iterdir()}
    formats = ["dense", "roundel"] + (["compressed-tensors"] if form != "mxfp4" else [])
    for container in formats:
        recipe = roundel.Recipe.create(**RTN, format=container)
        files = []
        for stream in (True, False):
            out, heard = tmp_path / f"{container}-{stream}", Heard()
            done = roundel.quantize(source, recipe, output=out, stream=stream, held_out=None, progress=heard)
            words = done.manifest["original"]["read_from"]
            assert words.startswith("read from ")
            assert words.endswith("the original is no full-precision model")
            assert f"The original: {words}" in heard.said
            files.append({path.name: path.read_bytes() for path in out.glob("*.safetensors")})
            written = json.loads((out / "config.json").read_text(encoding="utf-8"))
            method = (written.get("quantization_config") or {}).get("quant_method")
            assert method == ("compressed-tensors" if container == "compressed-tensors" else None)
        assert files[0] == files[1]
        wanted = roundel.quantize(source, recipe).model
        found, _ = roundel.load(out)
        ids = torch.arange(16).view(1, -1)
        with torch.no_grad():
            torch.testing.assert_close(found(ids).logits, wanted(ids).logits, rtol=0, atol=0.05)
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_spqr_of_blocks_of_eight_bits(tmp_path: Path) -> None:
    source = fp8(zoo_model("llama"), tmp_path / "source", (16, 32))
    out = tmp_path / "out"
    grid = {"bits": 3, "scale_bits": 3, "zero_bits": 3, "tile_rows": 16}
    recipe = roundel.Recipe(method="spqr", format="spqr", nsamples=16, seqlen=64, **grid)
    roundel.quantize(source, recipe, calibration="pydoc", output=out, stream=True, held_out=None)
    found = roundel.evaluate(str(out), text="pydoc", window=64, limit=4, reference=str(source))
    assert found.texts[0].kl is not None
    assert found.texts[0].kl.mean.value < 0.2


def test_heads_in_eight_bits_are_carried_over_dense(tmp_path: Path) -> None:
    """DeepSeek-V3's own prediction layer: its scales are no tensors of their own, its weights are dequantized."""
    model = zoo_model("deepseek_v3")
    whole = copy_with(model, tmp_path / "mtp", prediction_block(model), num_nextn_predict_layers=1)
    source = fp8(whole, tmp_path / "source")
    head = set(prediction_block(model))
    parts = load_file(source / "model.safetensors")
    for opened in (open_source(str(source)), open_skeleton(str(source))):
        assert set(opened.extra) == head
        assert opened.extra.shapes == {name: tuple(t.shape) for name, t in prediction_block(model).items()}
        assert opened.extra.bytes == sum(2 * t.numel() for t in prediction_block(model).values())
    out = tmp_path / "out"
    roundel.quantize(source, roundel.Recipe.create(**RTN), output=out, stream=True, held_out=None)
    written = stored(out)
    for name in head:
        wanted = parts[name].bfloat16()
        if f"{name}_scale_inv" in parts:
            scale = parts[f"{name}_scale_inv"].repeat_interleave(32, 0).repeat_interleave(32, 1)
            rows, columns = parts[name].shape
            wanted = (parts[name].float() * scale[:rows, :columns]).bfloat16()
        assert torch.equal(written[name], wanted), name
    assert not [name for name in written if "scale_inv" in name]


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = fp8(zoo_model("llama"), tmp_path / "source", (16, 32))
    recipe = roundel.Recipe.create(
        method="gptq", bits=3, group_size=32, nsamples=4, seqlen=64, format="roundel"
    )

    class StopAfter(Progress):
        """Asks the work to stop after so many signs of life."""

        def __init__(self, left: int) -> None:
            self.left = left

        @property
        def stop_asked(self) -> bool:
            self.left -= 1
            return self.left < 0

    go: dict[str, Any] = {"calibration": "pydoc", "stream": True, "held_out": None}
    interruptions = 0
    for patience in range(1, 100):
        try:
            roundel.quantize(source, recipe, output=tmp_path / "out", progress=StopAfter(patience), **go)
            break
        except Stopped:
            interruptions += 1
            assert not (tmp_path / "out").exists()
    assert interruptions > 1
    roundel.quantize(source, recipe, output=tmp_path / "straight", **go)
    name = "roundel.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_plan_inspect_sweep_and_compare_take_it_too(tmp_path: Path) -> None:
    source = fp8(zoo_model("llama"), tmp_path / "source", (16, 32))
    recipe = roundel.Recipe.create(**RTN, format="roundel")
    heard = Heard()
    layers = roundel.inspect(source, recipe, progress=heard)
    dense = roundel.inspect(zoo_model("llama"), recipe)
    assert [layer.name for layer in layers] == [layer.name for layer in dense]
    plan, _ = roundel.plan(source, recipe, trial=False, progress=heard)
    plain, _ = roundel.plan(open_source(str(source)).model, recipe, trial=False)
    assert plan.output == plain.output
    manifests = roundel.sweep(source, [recipe], tmp_path / "swept", held_out=None, progress=heard)
    assert len([words for words in heard.said if "FP8 blocks of 16x32" in words]) == 3
    (name,) = manifests
    found = roundel.compare([tmp_path / "swept" / name], source, text="pydoc", window=64, limit=2)
    assert found["models"][0]["layers"][0]["error"] == pytest.approx(
        manifests[name]["layers"][0]["error"], rel=1e-3
    )


def test_shards_are_read_alike(tmp_path: Path) -> None:
    source = fp8(zoo_model("llama"), tmp_path / "source", (16, 32))
    wanted = open_source(str(source)).model.state_dict()
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    places: dict[str, str] = {}
    # A weight and its scale may lie in different files.
    for number, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, source / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (source / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    same(open_source(str(source)).model.state_dict(), wanted)


@pytest.mark.parametrize("container", ["roundel", "dense", "compressed-tensors"])
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_own_outputs_are_originals_when_asked_for(container: str, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    roundel.quantize(
        zoo_model(name), roundel.Recipe.create(**RTN, format=container), output=out, held_out=None
    )
    coarser = roundel.Recipe.create(**{**RTN, "bits": 3}, format="roundel")
    with pytest.raises(ModelError, match="by Roundel.*--allow-quantized"):
        roundel.quantize(out, coarser)
    with pytest.raises(ModelError, match="--allow-quantized"):
        roundel.plan(out, coarser)
    loaded, _ = roundel.load(out)
    unpack_model(loaded)
    ours = open_model(out, None, False, False, allow_own=True)
    same(ours.model.state_dict(), {name: loaded.state_dict()[name] for name in ours.model.state_dict()})
    found = roundel.quantize(out, coarser, allow_quantized=True)
    assert "no full-precision model" in found.manifest["original"]["read_from"]
    again = tmp_path / "again"
    done = roundel.quantize(out, coarser, allow_quantized=True, output=again, stream=True, held_out=None)
    assert done.manifest["original"] == found.manifest["original"]
    written = roundel.read_integers(again)
    assert written.keys() == found.weights.keys()
    for layer, weight in found.weights.items():
        assert torch.equal(written[layer].codes, weight.codes), layer
    assert len(roundel.inspect(out, coarser, allow_quantized=True)) == len(done.manifest["layers"])


def test_tensors_without_a_place_go_on_from_our_own_container(tmp_path: Path) -> None:
    more = {"mtp.fc.weight": torch.randn(96, 192)}
    source = copy_with(zoo_model("llama"), tmp_path / "source", more)
    recipe = roundel.Recipe.create(**RTN, format="roundel")
    roundel.quantize(source, recipe, output=tmp_path / "one", held_out=None)
    roundel.quantize(tmp_path / "one", recipe, output=tmp_path / "two", held_out=None, allow_quantized=True)
    assert torch.equal(stored(tmp_path / "two")["mtp.fc.weight"], more["mtp.fc.weight"])
