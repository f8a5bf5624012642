"""GGUF in, GGUF out: what was tuned is in the file, everything else is as it was, and clients read the same model."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import roundel
from roundel.errors import FormatError, ModelError, RecipeError
from roundel.formats.gguf.container import gguf_file
from roundel.formats.gguf.file import GgufFile
from roundel.model.source import open_source
from zoo import manual_text, zoo_model
from zoo.gguf_file import write_gguf

DATA: dict[str, Any] = {"nsamples": 8, "seqlen": 32, "batch_size": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(zoo_model("llama"), tmp_path_factory.mktemp("gguf") / "llama.gguf")


def quantize(source: Path, out: Path, **settings: Any) -> roundel.Quantized:
    recipe = roundel.Recipe.create(**{"method": "rtn", **settings})
    text = [manual_text()] if recipe.needs_calibration else None
    return roundel.quantize(source, recipe, output=out, held_out=None, calibration=text)


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, np.array(t.data).tobytes()) for t in gguf.GGUFReader(path).tensors}


def metadata_of(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "q4_0"},
        {"type": "q5_1", "embedding_bits": 8},
        {"type": "q4_1", "head_bits": 5},
        {"type": "q8_0", "start": "search", "embedding_bits": 4, **DATA},
        {"type": "q4_k", "method": "autoround", "iters": 4, **DATA},
        {"mixture": "q3_k_m", "method": "gptq", **DATA},
        {"type": "q4_0", "method": "flexround", "iters": 4, **DATA},
        {"type": "q4_0", "layers": {"*.down_proj": {"type": "q5_0"}}, "skip": ["*.0.*"]},
    ],
    ids=str,
)
def test_transformers_reads_what_was_tuned(settings: dict[str, Any], source: Path, tmp_path: Path) -> None:
    made = quantize(source, tmp_path / "out", **settings)
    path = gguf_file(tmp_path / "out")
    assert path is not None
    read, tuned = open_source(path, quantized=True).model.state_dict(), made.model.state_dict()
    for name, tensor in tuned.items():
        # A head that was untied has a tensor of its own in the file, and is read as such.
        assert torch.equal(read[name], tensor), name
    # What is quantized is smaller by what its types are smaller.
    stored = GgufFile(path).tensors
    bits = sum(8 * t.bytes for t in stored.values())
    assert bits == sum(8 * len(data) for _, data in tensors_of(path).values())
    assert made.manifest["file_bytes"] == path.stat().st_size


def test_metadata_and_tokenizer_are_those_of_the_source(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", type="q4_0")
    path = gguf_file(tmp_path / "out")
    assert path is not None
    before, after = metadata_of(source), metadata_of(path)
    assert after.pop("general.file_type") == gguf.LlamaFileType.MOSTLY_Q4_0
    assert after.pop("general.quantization_version") == gguf.GGML_QUANT_VERSION
    for ours in ("general.file_type", "general.quantization_version"):
        before.pop(ours, None)
    assert after == before
    unquantized = {name: t for name, t in tensors_of(source).items() if "norm" in name or "embd" in name}
    assert unquantized.items() <= tensors_of(path).items()


@pytest.mark.parametrize("type", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_the_same_type_again_keeps_every_byte(type: str, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "once", type=type, embedding_bits=8)
    once = gguf_file(tmp_path / "once")
    assert once is not None
    (tmp_path / "copy.gguf").write_bytes(once.read_bytes())  # which nobody knows to be ours
    quantize(tmp_path / "copy.gguf", tmp_path / "twice", type=type, embedding_bits=8)
    twice = gguf_file(tmp_path / "twice")
    assert twice is not None
    assert once.read_bytes() == twice.read_bytes()


def test_what_already_has_its_type_is_kept_and_the_rest_is_rounded(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "q4", type="q4_0", skip=["*.1.*"])
    first = gguf_file(tmp_path / "q4")
    assert first is not None
    (tmp_path / "copy.gguf").write_bytes(first.read_bytes())
    made = quantize(tmp_path / "copy.gguf", tmp_path / "out", type="q4_0")
    reasons = {layer["name"]: layer["reason"] for layer in made.manifest["layers"]}
    assert reasons["model.layers.0.mlp.up_proj"] == "q4_0 in the file already: kept as it is"
    assert reasons["model.layers.1.mlp.up_proj"] == ""
    second = gguf_file(tmp_path / "out")
    assert second is not None
    before, after = tensors_of(first), tensors_of(second)
    assert after["blk.0.ffn_up.weight"] == before["blk.0.ffn_up.weight"]
    assert after["blk.1.ffn_up.weight"][0] == "Q4_0"


def test_our_folder_is_a_model_and_no_original(source: Path, tmp_path: Path) -> None:
    made = quantize(source, tmp_path / "out", type="q4_0")
    path = gguf_file(tmp_path / "out")
    assert path is not None
    opened, _ = roundel.load(tmp_path / "out", packed=False)
    assert torch.equal(
        opened.model.layers[0].mlp.up_proj.weight, made.model.model.layers[0].mlp.up_proj.weight
    )
    for name in (tmp_path / "out", path):
        with pytest.raises(ModelError, match="quantized already, by Roundel"):
            quantize(name, tmp_path / "again", type="q4_0")


def test_a_like_file_gives_names_and_metadata(source: Path, tmp_path: Path) -> None:
    folder = zoo_model("llama")
    recipe = roundel.Recipe.create(method="rtn", type="q4_0", format="gguf")
    made = roundel.quantize(folder, recipe, output=tmp_path / "out", held_out=None, like=source)
    path = gguf_file(tmp_path / "out")
    assert path is not None
    read = open_source(path, quantized=True).model.state_dict()
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(read[name], tensor.float()), name
    assert metadata_of(path)["tokenizer.ggml.tokens"] == metadata_of(source)["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 4, "group_size": 32, "format": "gguf"}, "a grid of 4 bits for groups of 32.*set type=q4_k"),
        ({"type": "q4_0", "act_bits": 8}, "llama.cpp quantizes them by itself; leave act_bits"),
        ({"type": "q4_0", "method": "gptq", "order": "act_order", **DATA}, "another order than the input"),
    ],
    ids=str,
)
def test_what_a_file_does_not_carry_is_refused_first(
    settings: dict[str, Any], words: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=words):
        quantize(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_types_and_mixtures_fix_their_grids() -> None:
    with pytest.raises(RecipeError, match="type q4_k fixes bits.*leave bits out"):
        roundel.Recipe.create(type="q4_k", bits=3)
    with pytest.raises(RecipeError, match="mixture q4_k_m says type q4_k"):
        roundel.Recipe.create(mixture="q4_k_m", type="q5_k")
    recipe = roundel.Recipe.create(mixture="q4_k_m")
    assert roundel.Recipe.create(**recipe.settings()) == recipe
    assert recipe.with_settings(iters=3).mixture == "q4_k_m"
    assert recipe.format == "gguf"


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_becomes_a_file(name: str, stream: bool, tmp_path: Path) -> None:
    folder = zoo_model(name)
    recipe = roundel.Recipe.create(method="rtn", type="q4_0", embedding_bits=8)
    roundel.quantize(folder, recipe, output=tmp_path / "out", held_out=None, stream=stream)
    made = roundel.quantize(folder, recipe.with_settings(format="dense"))
    path = gguf_file(tmp_path / "out")
    assert path is not None
    read, tuned = open_source(path, quantized=True).model.state_dict(), made.model.state_dict()
    for key in read:
        # Gemma's norms go there and back plus one.
        torch.testing.assert_close(read[key], tuned[key].float(), rtol=0, atol=1e-6 if "norm" in key else 0)


@pytest.mark.parametrize("stream", [False, True])
def test_experts_are_stacked_as_they_were_tuned(stream: bool, tmp_path: Path) -> None:
    folder = zoo_model("mixtral")
    recipe = roundel.Recipe.create(method="rtn", type="q5_1")
    roundel.quantize(folder, recipe, output=tmp_path / "out", held_out=None, stream=stream)
    made = roundel.quantize(folder, recipe.with_settings(format="dense"))
    path = gguf_file(tmp_path / "out")
    assert path is not None
    file, experts = GgufFile(path), made.model.model.layers[1].mlp.experts
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    for name, wanted in (("gate", gate), ("up", up), ("down", experts.down_proj)):
        found = file.tensor(f"blk.1.ffn_{name}_exps.weight")
        assert torch.equal(found, wanted.float()), name


def test_experts_of_a_layer_share_a_type(tmp_path: Path) -> None:
    layers = {"*.experts.down_proj.0": {"type": "q8_0"}}
    recipe = roundel.Recipe.create(method="rtn", type="q4_0", layers=layers)
    with pytest.raises(FormatError, match="one type for all experts of a layer is expected"):
        roundel.quantize(zoo_model("mixtral"), recipe, output=tmp_path / "out", held_out=None)
