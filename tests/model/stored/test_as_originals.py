"""Checkpoints that are quantized already are originals: streamed and whole the same, through every format and job."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import roundel
from model.stored.forms import FORMS, RTN, Heard, made, same
from model.test_extra_tensors import copy_with, prediction_block, stored
from roundel.errors import Stopped
from roundel.model.source import open_skeleton, open_source
from roundel.system.progress import Progress
from zoo import zoo_model
from zoo.quantized import fp8

pytestmark = pytest.mark.slow("builds and dequantizes sources of every form")


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
            assert method == (None if container == "dense" else container)
        assert files[0] == files[1]
        wanted = roundel.quantize(source, recipe).model
        found, _ = roundel.load(out, packed=False)
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
