"""The type of a model is the one in which it is stored, and what was not changed keeps its bytes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import roundel
from roundel.model.stored_types import prevailing_type

pytestmark = pytest.mark.slow("writes four architectures in every format")

RTN = roundel.Recipe(method="rtn", group_size=32, sym=True)
FORMATS = ("compressed-tensors", "dense", "roundel", "gptq")


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all files of a folder."""
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def carrying(model: Path) -> tuple[str, ...]:
    """Formats that take the Linears of a model."""
    return tuple(f for f in FORMATS if model.name != "gpt2" or f in ("dense", "roundel"))


def variant(model: Path, folder: Path, weights: torch.dtype, norms: torch.dtype, *, named: bool) -> Path:
    """A copy in other types, with values in its vectors that only float32 holds; its config names the type or none."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            tensors[name] = tensor.to(weights)
        else:
            tensors[name] = (tensor.float() + 1e-4 * torch.randn(tensor.shape, generator=draw)).to(norms)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        about.pop(key, None)
    if named:
        about["dtype"] = str(weights).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_type_that_no_config_names(
    dtype: torch.dtype, any_model: Path, held_out: Path, tmp_path: Path
) -> None:
    """Streamed as in memory, block by block as whole, in the type of the checkpoint."""
    source = variant(any_model, tmp_path / "source", dtype, dtype, named=False)
    assert prevailing_type(source) is dtype
    for format in carrying(any_model):
        outs = [tmp_path / f"{format}-{stream}" for stream in (False, True)]
        for out in outs:
            stream = out.name.endswith("True")
            recipe = RTN.with_settings(format=format)
            roundel.quantize(source, recipe, output=out, stream=stream, held_out=None)
        one, other = ({p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".html"} for out in outs)
        assert one.keys() == other.keys()
        assert all(one[name] == other[name] for name in one if name != "roundel.json")
        assert json.loads(one["config.json"])["dtype"] == str(dtype).removeprefix("torch.")
        assert roundel.load(outs[0])[0].dtype is dtype
    for model in (source, outs[0]):
        whole, by_blocks = (
            roundel.evaluate(
                model, text=str(held_out), window=64, limit=2, block_by_block=way, packed=False
            ).texts[0]
            for way in (False, True)
        )
        assert whole.perplexity == by_blocks.perplexity


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_several_types_stay(
    format: str, stream: bool, named: bool, any_model: Path, held_out: Path, tmp_path: Path
) -> None:
    source = variant(any_model, tmp_path / "source", torch.bfloat16, torch.float32, named=named)
    if format not in carrying(any_model):
        pytest.skip(f"{format} carries no Conv1D")
    result = roundel.quantize(
        source, RTN.with_settings(format=format), output=tmp_path / "out", stream=stream, held_out=None
    )
    wanted, found = load_file(source / "model.safetensors"), stored_tensors(tmp_path / "out")
    vectors = [name for name in wanted if wanted[name].ndim == 1 and ("norm" in name or "ln_" in name)]
    assert vectors
    assert result.manifest["layers"]
    names = {name.rpartition("transformer.")[2].rpartition("model.")[2]: name for name in found}
    for name in vectors:
        tensor = found[names[name.rpartition("transformer.")[2].rpartition("model.")[2]]]
        assert tensor.dtype is torch.float32, name
        assert torch.equal(tensor, wanted[name]), name
    # Clients compute in one type.
    again = roundel.load(tmp_path / "out", packed=False)[0]
    assert again.dtype is torch.bfloat16
    whole, by_blocks = (
        roundel.evaluate(
            tmp_path / "out", text=str(held_out), window=64, limit=2, block_by_block=way, packed=False
        ).texts[0]
        for way in (False, True)
    )
    assert whole.perplexity == by_blocks.perplexity


def test_a_norm_that_was_changed_keeps_its_type(llama: Path, tmp_path: Path) -> None:
    """SmoothQuant moves scales into norms: these are the work's own values."""
    source = variant(llama, tmp_path / "source", torch.bfloat16, torch.float32, named=True)
    recipe = RTN.with_settings(act_bits=8, smooth=0.5, format="dense", nsamples=4, seqlen=32)
    roundel.quantize(source, recipe, output=tmp_path / "out", held_out=None, calibration="pydoc")
    wanted, found = load_file(source / "model.safetensors"), stored_tensors(tmp_path / "out")
    name = "model.layers.0.input_layernorm.weight"
    assert found[name].dtype is torch.float32
    assert not torch.equal(found[name], wanted[name])
    assert torch.equal(found["model.norm.weight"], wanted["model.norm.weight"])
