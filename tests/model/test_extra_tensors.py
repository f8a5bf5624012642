"""What a checkpoint holds beyond its class goes into the output as it is: heads that predict several tokens, others.

The trained models get tensors of the kinds that released checkpoints have. The oracle is safetensors itself: names and
bytes of the source's file against those of the output's files.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import roundel
from roundel.errors import FormatError, ModelError
from roundel.formats.reload import check_extra
from roundel.model.blocks import find_blocks
from roundel.model.extra_tensors import ExtraTensors, find_extra_tensors
from roundel.model.linears import linears_in
from roundel.model.source import open_skeleton
from zoo import zoo_model

FORMATS = ("compressed-tensors", "dense", "roundel", "gptq_v2", "awq")
Tensors = dict[str, torch.Tensor]


def named() -> Tensors:
    """Heads under names of their own (Qwen3-Next's `mtp`, a value head), in types of all kinds."""
    draw = torch.Generator().manual_seed(0)
    return {
        "mtp.fc.weight": torch.randn(96, 192, generator=draw),
        "mtp.layers.0.mlp.up_proj.weight": torch.randn(256, 96, generator=draw).bfloat16(),
        "mtp.norm.weight": torch.ones(96).half(),
        "v_head.summary.weight": torch.full((1, 96), float("nan")),
        "mtp.steps": torch.tensor([1, 2, 3]),
        # What is in a block, and computes nothing.
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(12, generator=draw),
        "model.layers.1.self_attn.k_scale": torch.tensor(0.5),
    }


def prediction_block(model: Path) -> Tensors:
    """One more decoder block, with what it needs to predict the token after the next, as DeepSeek-V3 has it."""
    tensors = load_file(model / "model.safetensors")
    blocks = {int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")}
    last, width = max(blocks), tensors["model.norm.weight"].shape[0]
    more = {name: t for name, t in tensors.items() if name.startswith(f"model.layers.{last}.")}
    more = {name.replace(f".{last}.", f".{last + 1}.", 1): t.flip(0) for name, t in more.items()}
    draw = torch.Generator().manual_seed(1)
    own = {"eh_proj.weight": (width, 2 * width), "enorm.weight": (width,), "hnorm.weight": (width,)}
    own["shared_head.norm.weight"] = (width,)
    return more | {
        f"model.layers.{last + 1}.{key}": torch.randn(*shape, generator=draw) for key, shape in own.items()
    }


def copy_with(model: Path, folder: Path, extra: Tensors, **config: Any) -> Path:
    """A copy of a model with more tensors."""
    shutil.copytree(model, folder)
    save_file(
        {**load_file(folder / "model.safetensors"), **extra}, folder / "model.safetensors", {"format": "pt"}
    )
    about = json.loads((folder / "config.json").read_text(encoding="utf-8")) | config
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def stored(folder: Path) -> Tensors:
    """All tensors of all files of a folder."""
    found: Tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return found


def same_bytes(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    bytes_of = [t.contiguous().flatten().view(torch.uint8) for t in (found, wanted)]
    return found.dtype == wanted.dtype and found.shape == wanted.shape and torch.equal(*bytes_of)


CASES = ["named", "deepseek_v3", "glm4_moe"]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    """A source, and what is beyond its class in it."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    if request.param == "named":
        extra = named()
        return copy_with(zoo_model("llama"), folder, extra), extra
    model = zoo_model("deepseek_v3") if request.param == "deepseek_v3" else _glm(folder.parent / "glm")
    extra = prediction_block(model)
    return copy_with(model, folder, extra, num_nextn_predict_layers=1), extra


def _glm(folder: Path) -> Path:
    """GLM-4.5's class, small and untrained: here only names and bytes count."""
    from transformers import Glm4MoeConfig

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "vocab_size": 1024,
    }
    experts = {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Glm4MoeConfig(**sizes, **experts, **heads)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_carries_them(
    format: str, stream: bool, case: tuple[Path, Tensors], tmp_path: Path
) -> None:
    source, extra = case
    recipe = roundel.Recipe(method="rtn", sym=True, group_size=32, format=format)
    result = roundel.quantize(source, recipe, output=tmp_path / "out", stream=stream, held_out=None)
    found = stored(tmp_path / "out")
    for name, tensor in extra.items():
        assert same_bytes(found[name], tensor), name
    rows = {layer["name"]: layer for layer in result.manifest["layers"] if layer["kind"] == "extra tensor"}
    assert rows.keys() == {name.removesuffix(".weight") for name in extra}
    assert all("carried over" in row["reason"] and row["bits"] is None for row in rows.values())
    # It opens as before, and computes what it would without them.
    plain = tmp_path / "plain"
    roundel.quantize(
        source, recipe.with_settings(extra_tensors=False), output=plain, stream=stream, held_out=None
    )
    assert not stored(plain).keys() & extra.keys()
    ids = torch.arange(40)[None] * 7 % 256
    with torch.no_grad():
        one, other = (
            roundel.load(folder, packed=False)[0](input_ids=ids).logits
            for folder in (tmp_path / "out", plain)
        )
    assert torch.equal(one, other)


def test_transformers_spqr_carries_them(tmp_path: Path) -> None:
    source = copy_with(zoo_model("llama"), tmp_path / "model", named())
    settings = {"bits": 3, "scale_bits": 3, "zero_bits": 3, "tile_rows": 16, "nsamples": 4, "seqlen": 32}
    recipe = roundel.Recipe(method="spqr", format="spqr", calibration="pydoc", **settings)
    roundel.quantize(source, recipe, output=tmp_path / "out", held_out=None)
    assert all(same_bytes(stored(tmp_path / "out")[name], tensor) for name, tensor in named().items())
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    left = {name for name, tensor in named().items() if tensor.ndim == 2}
    assert left <= set(config["modules_to_not_convert"])


def test_clients_build_their_linears_unquantized(case: tuple[Path, Tensors], tmp_path: Path) -> None:
    source, extra = case
    recipe = roundel.Recipe(method="rtn", sym=True, group_size=32)
    roundel.quantize(source, recipe, output=tmp_path / "out", held_out=None)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    matrices = {name.removesuffix(".weight") for name, t in extra.items() if t.ndim == 2}
    assert matrices <= set(config["ignore"])


def test_a_sharded_source(tmp_path: Path) -> None:
    extra = named()
    source = copy_with(zoo_model("llama"), tmp_path / "model", {})
    save_file(extra, source / "model-00002-of-00002.safetensors", {"format": "pt"})
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(
        load_file(source / "model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors"
    )
    places |= dict.fromkeys(extra, "model-00002-of-00002.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    roundel.quantize(
        source, roundel.Recipe(method="rtn", group_size=32), output=tmp_path / "out", held_out=None
    )
    assert all(same_bytes(stored(tmp_path / "out")[name], tensor) for name, tensor in extra.items())


def test_a_pickled_source(tmp_path: Path) -> None:
    extra = named()
    source = copy_with(zoo_model("llama"), tmp_path / "model", {})
    torch.save({**load_file(source / "model.safetensors"), **extra}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    recipe = roundel.Recipe(method="rtn", group_size=32)
    roundel.quantize(source, recipe, output=tmp_path / "out", allow_pickle=True, held_out=None)
    assert all(same_bytes(stored(tmp_path / "out")[name], tensor) for name, tensor in extra.items())


def test_an_ordinary_checkpoint_has_none(any_model: Path) -> None:
    assert not open_skeleton(str(any_model)).extra


def test_a_buffer_that_the_class_computes_is_none(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    names = {name for name, _ in model.named_buffers()} - set(model.state_dict())
    assert names
    buffers = {name: model.get_buffer(name).clone() for name in names}
    source = copy_with(llama, tmp_path / "model", buffers)
    assert not find_extra_tensors(model, source)


@pytest.mark.parametrize(("announced", "refused"), [(0, True), (1, False), (None, True)])
def test_a_depth_that_nothing_announces_is_refused(
    announced: int | None, refused: bool, llama: Path, tmp_path: Path
) -> None:
    config = {} if announced is None else {"num_nextn_predict_layers": announced}
    source = copy_with(llama, tmp_path / "model", prediction_block(llama), **config)
    if refused:
        with pytest.raises(
            ModelError, match=r"holds model.layers.2.* the model has 2 blocks: take the config"
        ):
            open_skeleton(str(source))
    else:
        assert len(open_skeleton(str(source)).extra)


def test_one_block_more_than_announced_is_refused(llama: Path, tmp_path: Path) -> None:
    more = {name.replace(".2.", ".3.", 1): t for name, t in prediction_block(llama).items()}
    source = copy_with(llama, tmp_path / "model", more, num_nextn_predict_layers=1)
    with pytest.raises(ModelError, match="2 blocks and 1 more that predict further tokens"):
        open_skeleton(str(source))


def test_what_a_block_would_compute_with_is_refused(any_model: Path, tmp_path: Path) -> None:
    """It is another function than the one that transformers runs, whether the tensor would be carried or left out."""
    model = AutoModelForCausalLM.from_pretrained(any_model)
    stack = find_blocks(model)
    own = next(view.name for view in linears_in(model, "") if stack.holds(view.name))
    name = f"{own}.bias" if getattr(model.get_submodule(own), "bias", None) is None else f"{own}.gate"
    source = copy_with(any_model, tmp_path / "model", {name: torch.randn(8)})
    recipe = roundel.Recipe(method="rtn", group_size=32)
    for more in (recipe, recipe.with_settings(extra_tensors=False)):
        for work in (
            lambda more=more: roundel.inspect(source, more),
            lambda more=more: roundel.plan(source, more, trial=False),
            lambda more=more: roundel.quantize(source, more, output=tmp_path / "never", held_out=None),
        ):
            with pytest.raises(ModelError, match=f"holds {re.escape(name)}, inside a decoder block"):
                work()
    assert not (tmp_path / "never").exists()


def test_inspect_shows_them(case: tuple[Path, Tensors]) -> None:
    source, extra = case
    layers = {
        layer.name: layer
        for layer in roundel.inspect(source, roundel.Recipe(method="rtn", group_size=32, sym=True))
    }
    for name, tensor in extra.items():
        row = layers[name.removesuffix(".weight")]
        assert row.shape == tuple(tensor.shape)
        assert "carried over as it is" in row.reason


def test_what_was_written_is_compared(tmp_path: Path) -> None:
    source = copy_with(zoo_model("llama"), tmp_path / "model", named())
    extra = open_skeleton(str(source)).extra
    check_extra(source, extra)
    shutil.copytree(source, tmp_path / "other")
    changed = load_file(source / "model.safetensors")
    changed["mtp.norm.weight"][3] = 2
    save_file(changed, tmp_path / "other" / "model.safetensors")
    with pytest.raises(FormatError, match=r"differs from the tuned one in mtp.norm.weight"):
        check_extra(tmp_path / "other", extra)
    with pytest.raises(FormatError, match="is not in the written files"):
        check_extra(zoo_model("llama"), extra)
    check_extra(zoo_model("llama"), ExtraTensors())
