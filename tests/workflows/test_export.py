"""A folder in every other format is the same model: the logits of the source's, bit for bit, or it is refused."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from bad_inputs.box import edit
from bad_inputs.run import contents, run
from formats.test_kernel_layouts import IDS, NARROW, stored
from roundel.errors import FormatError, OutputError
from roundel.formats import CONTAINERS
from roundel.formats.gguf.container import gguf_file
from roundel.records.manifest import read_manifest
from roundel.system.belongings import own_files
from zoo import zoo_model

pytestmark = pytest.mark.slow("writes models in every format")

FORMATS = list(CONTAINERS)
PLAIN = ["compressed-tensors", "gptq", "gptq_v2", "awq", "auto-round"]
SPQR: dict[str, Any] = {
    "method": "spqr",
    "bits": 3,
    "group_size": 16,
    "scale_bits": 3,
    "zero_bits": 3,
    "tile_rows": 16,
    "outliers": 0.01,
    "nsamples": 4,
    "seqlen": 32,
}


def write(out: Path, model: Path | str = "llama", **settings: Any) -> Path:
    given = {"method": "rtn", **settings}
    if "group_size" not in given and "type" not in given:
        given["group_size"] = 32
    recipe = roundel.Recipe.create(**given)
    source = zoo_model(model) if isinstance(model, str) else model
    data = "pydoc" if recipe.needs_calibration else None
    roundel.quantize(source, recipe, output=out, calibration=data, held_out=None)
    return out


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    """Those of its dequantized weights in the type in which it is opened."""
    model, _ = roundel.load(folder, packed=False)
    return model(input_ids=IDS, use_cache=False).logits


def export(folder: Path, format: str, out: Path, **options: Any) -> dict[str, Any]:
    """The manifest; whatever comes of it, the source is as it was."""
    before = contents(folder)
    try:
        return roundel.export(folder, format, out, **options)
    finally:
        assert contents(folder) == before
        assert not list(folder.parent.glob(".*"))  # nothing of the work is left


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "spqr"])
@pytest.mark.parametrize("sym", [True, False])
def test_every_pair_is_the_same_model_or_refused(format: str, sym: bool, tmp_path: Path) -> None:
    """4 bits in groups of 32, which all but spqr hold; with zero points no GGUF file does, or no other format."""
    settings: dict[str, Any] = {"type": "q4_0" if sym else "q4_1"} if format == "gguf" else {"sym": sym}
    source = write(tmp_path / "source", format=format, skip=NARROW, **settings)
    wanted = logits(source)
    for target in FORMATS:
        out = tmp_path / target
        refused = {format: "already", "spqr": "3, 16, 3, 3, 16 and float16"}
        if not sym and format == "gguf":
            refused |= dict.fromkeys(
                PLAIN, "no whole multiple.*set bits=4 group_size=32 in place of the type"
            )
        elif not sym:
            refused["gguf"] = "no float16 number.*set type=q4_1, or sym=true.*quantize the original again"
        if target in refused:
            with pytest.raises(FormatError, match=refused[target]):
                export(source, target, out)
            assert not out.exists()
            continue
        manifest = export(source, target, out)
        assert torch.equal(logits(out), wanted), target
        assert read_manifest(out) == json.loads(json.dumps(manifest))
        assert all(own_files(out).values())
        back = tmp_path / "back"
        # transformers' tokenizer of a GGUF file has a token more than its embeddings; the file itself has not.
        if sym:
            like = {"like": gguf_file(source)} if format == "gguf" else {}
            export(out, format, back, overwrite=True, **like)
            assert torch.equal(logits(back), wanted), target


def test_spqr_goes_where_all_of_it_fits(tmp_path: Path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(zoo_model("llama"), dtype=torch.float16).save_pretrained(half)
    AutoTokenizer.from_pretrained(zoo_model("llama")).save_pretrained(half)
    source = write(tmp_path / "source", half, format="spqr", **SPQR)
    wanted = logits(source)
    for target in ("roundel", "dense"):
        export(source, target, tmp_path / target)
        assert torch.equal(logits(tmp_path / target), wanted)
        export(tmp_path / target, "spqr", tmp_path / "back", overwrite=True)
        assert torch.equal(logits(tmp_path / "back"), wanted)
        assert stored(tmp_path / "back").keys() == stored(source).keys()
    for target, words in {**dict.fromkeys(PLAIN, "on two levels"), "gguf": "set type=q3_k"}.items():
        with pytest.raises(FormatError, match=words):
            export(source, target, tmp_path / "out")
    # The same weights in a model of float32: the file would round what is beside them.
    fine = write(tmp_path / "fine", format="roundel", **SPQR)
    with pytest.raises(FormatError, match="is not quantized, has numbers that float16 does not hold"):
        export(fine, "spqr", tmp_path / "out")


@pytest.mark.parametrize("group_size", [64, 96, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_larger_groups_become_those_of_a_type(bits: int, group_size: int, tmp_path: Path) -> None:
    """96 and 256 inputs, so that groups of 64 and of 96 are shorter at the end of some rows."""
    heard = Heard()
    source = write(tmp_path / "source", format="roundel", bits=bits, sym=True, group_size=group_size)
    manifest = export(source, "gguf", tmp_path / "out", progress=heard)
    assert torch.equal(logits(tmp_path / "out"), logits(source))
    assert manifest["bits_per_weight"] == bits + 0.5
    assert {layer["type"] for layer in manifest["layers"]} == {None, f"q{bits}_0"}
    assert any(f"take {bits}.500 bits per weight there" in line for line in heard.lines)
    words = r"groups? of 48|a grid of 4 bits for groups of 48.*set type=q4_k"
    odd = write(tmp_path / "odd", format="roundel", sym=True, group_size=48)
    with pytest.raises(FormatError, match=words):
        export(odd, "gguf", tmp_path / "no")


class Heard(roundel.Progress):
    """What is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("architecture", ["mixtral", "phi3", "opt", "bloom", "gemma3"])
def test_experts_fused_rows_biases_and_ties_go_along(architecture: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", architecture, format="roundel", sym=True)
    wanted = logits(source)
    export(source, "gptq", tmp_path / "gptq")
    for before in (source, tmp_path / "gptq"):
        for target in ("roundel", "compressed-tensors", "dense"):
            if before != source or target != "roundel":
                export(before, target, tmp_path / "out", overwrite=True)
                assert torch.equal(logits(tmp_path / "out"), wanted)


def test_a_head_and_an_embedding_go_where_they_are_read(tmp_path: Path) -> None:
    source = write(tmp_path / "source", "bloom", format="dense", sym=True, embedding_bits=8)
    for target in ("roundel", "gguf"):
        export(source, target, tmp_path / target)
        assert torch.equal(logits(tmp_path / target), logits(source))
    with pytest.raises(FormatError, match="is an embedding.*leave embedding_bits out"):
        export(source, "gptq", tmp_path / "out")


@pytest.mark.parametrize("source_format", ["roundel", "gptq"])
def test_an_order_of_columns_goes_where_it_is_carried(source_format: str, tmp_path: Path) -> None:
    ordered = {"method": "gptq", "order": "act_order", "nsamples": 4, "seqlen": 32}
    source = write(tmp_path / "source", format=source_format, **ordered)
    for target in {"roundel", "dense", "gptq", "gptq_v2"} - {source_format}:
        export(source, target, tmp_path / target)
        assert torch.equal(logits(tmp_path / target), logits(source))
    for target in ("compressed-tensors", "awq", "gguf"):
        with pytest.raises(FormatError, match="set order=group_aware or static_groups=true"):
            export(source, target, tmp_path / "out")


@pytest.mark.parametrize("act_scale", ["token", "static"])
def test_quantized_activations_go_along(act_scale: str, tmp_path: Path) -> None:
    rounding = {"sym": True, "act_bits": 8, "kv_bits": 8, "act_scale": act_scale}
    rounding |= {"nsamples": 4, "seqlen": 32} if act_scale == "static" else {}
    source = write(tmp_path / "source", format="roundel", **rounding)
    for target in ("compressed-tensors", "dense"):
        export(source, target, tmp_path / target)
        assert torch.equal(logits(tmp_path / target), logits(source))
    with pytest.raises(FormatError, match="quantized activations are not carried by gptq"):
        export(source, "gptq", tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_sixteen_bits_keeps_its_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """Into a GGUF file and back: the folder that comes out is the one that went in, tensor by tensor."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(zoo_model("llama"), dtype=dtype).save_pretrained(half)
    AutoTokenizer.from_pretrained(zoo_model("llama")).save_pretrained(half)
    source = write(tmp_path / "source", half, format="gptq", sym=True)
    export(source, "gguf", tmp_path / "gguf")
    export(tmp_path / "gguf", "gptq", tmp_path / "back")
    before, after = stored(source), stored(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    assert torch.equal(logits(tmp_path / "back"), logits(source))


def test_what_lies_beside_the_weights_is_what_quantize_would_have_written(tmp_path: Path) -> None:
    settings = {"sym": True, "skip": NARROW}
    source = write(tmp_path / "source", format="roundel", **settings)
    for target in ("compressed-tensors", "awq", "dense", "gptq"):
        wanted = contents(write(tmp_path / f"wanted-{target}", format=target, **settings))
        export(source, target, tmp_path / target)
        found = contents(tmp_path / target)
        for files in (found, wanted):  # in another order of keys
            files["config.json"] = json.loads(files["config.json"] or "")
        apart = {"roundel.json", "README.md", "report.json", "report.html"}
        assert {name: found[name] for name in found.keys() - apart} == {
            name: wanted[name] for name in wanted.keys() - apart
        }, target


@pytest.mark.parametrize("format", ["roundel", "gptq", "dense"])
def test_types_of_the_checkpoint_and_tensors_without_a_place_stay(format: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(zoo_model("llama"), tmp_path / "model"))
    tensors = {
        n: t if "norm" in n else t.bfloat16() for n, t in load_file(model / "model.safetensors").items()
    }
    tensors["value_head.weight"] = torch.ones(1, 96)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    edit(model / "config.json", lambda config: config.update(dtype="bfloat16"))
    (model / "LICENSE").write_text("as you like")
    source = write(tmp_path / "source", model, format=format, sym=True)
    kept = ("model.norm.weight", "model.embed_tokens.weight", "value_head.weight")
    for target in {"roundel", "compressed-tensors", "dense", "gguf"} - {format}:
        heard = Heard()
        export(source, target, tmp_path / target, progress=heard)
        assert (tmp_path / target / "LICENSE").read_text() == "as you like"
        if target == "gguf":
            assert any("value_head.weight, without a place in gguf" in line for line in heard.lines)
            continue
        found = stored(tmp_path / target)
        for name in kept:
            assert found[name].dtype == tensors[name].dtype
            assert torch.equal(found[name], tensors[name])


def test_the_manifest_says_from_what_and_the_report_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", format="gptq", sym=True)
    figures = {"texts": [], "tasks": [{"task": "made", "metric": "acc", "value": 0.5, "stderr": 0.1}]}
    figures["tasks"][0] |= {"documents": 10, "fewshot": 0, "reference": None, "flips": None}
    digest = hashlib.sha256((source / "roundel.json").read_bytes()).hexdigest()
    from roundel.system.seal import write_sealed_json

    report = {"manifest": read_manifest(source), "details": {}, "standouts": [], "quality": figures}
    write_sealed_json(source / "report.json", "report", report)
    manifest = export(source, "compressed-tensors", tmp_path / "out")
    before = read_manifest(source)
    assert manifest["exported_from"]["folder"] == "source"
    assert manifest["exported_from"]["format"] == "gptq"
    assert manifest["exported_from"]["manifest_sha256"] == digest
    assert manifest["recipe"] == {**before["recipe"], "format": "compressed-tensors"}
    assert manifest["opens_in"] == ["transformers", "vLLM"]
    assert manifest["files"].keys() >= {"config.json", "model.safetensors", "tokenizer.json"}
    same = before.keys() - {"recipe", "opens_in", "files", "file_bytes", "bits_per_parameter", "layers"}
    assert {key: manifest[key] for key in same} == {key: before[key] for key in same}
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["quality"] == figures
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "measured in the format gptq, before the export to compressed-tensors" in card
    assert "roundel export source -o out --format compressed-tensors" in card
    assert "roundel quantize llama -o source --recipe recipe.yaml" in card
    assert "format: gptq" in card
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "before the export to compressed-tensors" in page
    # And once more: both steps are told.
    export(tmp_path / "out", "dense", tmp_path / "twice")
    card = (tmp_path / "twice" / "README.md").read_text(encoding="utf-8")
    assert "roundel export source -o out --format compressed-tensors\nroundel export out -o twice" in card


def test_an_interrupted_run_into_the_same_folder_is_left_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "source", format="roundel")
    work = tmp_path / ".out.roundel"
    work.mkdir()
    (work / "roundel-work").write_text("Roundel keeps here what an unfinished run has done")
    (work / "piece-00000.safetensors").write_bytes(b"work of hours")
    roundel.export(source, "dense", tmp_path / "out")
    assert (work / "piece-00000.safetensors").read_bytes() == b"work of hours"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source", format="roundel")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("roundel.formats.kernel_layout.write_model", full)
    with pytest.raises(OutputError, match="no space left on the disk.*nothing was written"):
        export(source, "gptq", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    source = write(tmp_path / "source", format="gptq", sym=True)
    code, err, out = run("export", source, "-o", tmp_path / "out", "--format", "gguf")
    assert code == 0, err
    assert "4.500 bits per weight" in out
    assert "Opens in: llama.cpp, Ollama, LM Studio" in err
    assert os.listdir(tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(source))
