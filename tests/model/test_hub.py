"""A model by its hub id is the same model as by its folder, from the hub's cache and from a hub on loopback."""

import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import roundel
from hub import Hub, publish
from roundel.cli.app import main
from roundel.errors import ModelError, RoundelError
from roundel.model.place import locate
from roundel.system.progress import Progress
from roundel.workflows.evaluation_options import EvaluationOptions
from roundel.workflows.measuring import open_measured
from zoo import zoo_model
from zoo.quantized import fp8, gptq

FIRST, SECOND = "1" * 40, "2" * 40
RTN = {"method": "rtn", "group_size": 32}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> dict[str, Path]:
    """A folder of each kind."""
    home = tmp_path_factory.mktemp("outputs")
    made = {"original": llama}
    for name, more in {
        "activations": {"bits": 8, "act_bits": 3, "format": "dense"},
        "dense": {"bits": 4, "format": "dense"},
        "own": {"bits": 4, "format": "roundel"},
        "packed": {"bits": 4, "sym": True},
    }.items():
        made[name] = home / name
        roundel.quantize(llama, roundel.Recipe(**RTN, **more), output=made[name], held_out=None)
    return made


@pytest.mark.parametrize("kind", ["original", "activations", "dense", "own", "packed"])
def test_what_is_measured_is_the_same(
    kind: str, outputs: dict[str, Path], cache: Path, held_out: Path
) -> None:
    publish(cache, outputs[kind], "acme/model", FIRST, "main")
    found = [
        roundel.evaluate(model, reference=outputs["original"], text=str(held_out), window=64, limit=4)
        for model in (outputs[kind], "acme/model")
    ]
    by_path, by_id = (one.texts[0] for one in found)
    assert by_id.perplexity == by_path.perplexity
    assert by_id.kl == by_path.kl
    assert found[1].activations == found[0].activations
    assert bool(found[1].activations) == (kind == "activations")


@pytest.mark.parametrize("kind", ["activations", "dense", "own", "packed"])
def test_what_roundel_wrote_is_no_original(
    kind: str, outputs: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    publish(cache, outputs[kind], "acme/model", FIRST, "main")
    recipe = roundel.Recipe(**RTN)
    for work in (
        lambda: roundel.quantize("acme/model", recipe, output=tmp_path / "again", held_out=None),
        lambda: roundel.inspect("acme/model", recipe),
        lambda: roundel.plan("acme/model", recipe),
    ):
        with pytest.raises(ModelError, match="acme/model is quantized already, by Roundel"):
            work()
    assert not (tmp_path / "again").exists()


def test_a_run_is_the_same_and_names_the_commit(
    outputs: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    publish(cache, outputs["original"], "acme/model", FIRST, "main")
    recipe = roundel.Recipe(**RTN)
    made = {
        name: roundel.quantize(
            model, recipe, output=tmp_path / name, held_out=None, stream=name == "streamed"
        )
        for name, model in (("path", outputs["original"]), ("id", "acme/model"), ("streamed", "acme/model"))
    }
    files = {p.name for p in (tmp_path / "path").iterdir()}
    for name in ("id", "streamed"):
        assert {p.name for p in (tmp_path / name).iterdir()} == files
        for file in files - {"roundel.json"}:
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "path" / file).read_bytes(), file
        assert made[name].manifest["source"] == "acme/model"
        assert made[name].manifest["original"]["commit"] == FIRST
    assert "commit" not in made["path"].manifest["original"]


@pytest.mark.parametrize("kind", ["fp8", "gptq", "adapter", "wrapper"])
def test_so_it_is_with_sources_of_other_kinds(kind: str, llama: Path, cache: Path, tmp_path: Path) -> None:
    """What is read of them is said, and the same is written."""
    source = tmp_path / "source"
    if kind == "fp8":
        fp8(llama, source)
    elif kind == "gptq":
        gptq(llama, source)
    elif kind == "wrapper":
        shutil.copytree(zoo_model("gemma3"), source)
    else:
        publish(cache, llama, "acme/base", SECOND, "v1")
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(llama), lora).save_pretrained(source)
        path = source / "adapter_config.json"
        about = json.loads(path.read_text(encoding="utf-8"))
        about |= {"base_model_name_or_path": "acme/base", "revision": "v1"}
        path.write_text(json.dumps(about), encoding="utf-8")
    publish(cache, source, "acme/model", FIRST, "main")
    made = {
        name: roundel.quantize(
            model, roundel.Recipe(**RTN), output=tmp_path / name, stream=True, held_out=None
        ).manifest["original"]
        for name, model in (("path", source), ("id", "acme/model"))
    }
    files = {p.name for p in (tmp_path / "path").iterdir()}
    for file in files - {"roundel.json"}:
        assert (tmp_path / "id" / file).read_bytes() == (tmp_path / "path" / file).read_bytes(), file
    words = made["path"].get("read_from", "")
    assert bool(words) == (kind != "wrapper")
    assert made["id"].get("read_from", "") == words.replace(str(source), "acme/model")
    if kind == "adapter":
        assert made["id"]["base"] == "acme/base@v1"
    else:
        assert made["id"]["commit"] == FIRST


def test_inspect_shows_what_was_done(
    outputs: dict[str, Path], cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(cache, outputs["own"], "acme/model", FIRST, "main")
    shown = []
    for name in (str(outputs["own"]), "acme/model"):
        monkeypatch.setattr(sys, "argv", ["roundel", "inspect", name])
        with pytest.raises(SystemExit) as leaving:
            main()
        assert not leaving.value.code
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert roundel.read_integers("acme/model").keys() == roundel.read_integers(outputs["own"]).keys()


def test_a_large_one_is_read_block_by_block(
    outputs: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(cache, outputs["original"], "acme/model", FIRST, "main")
    monkeypatch.setattr("roundel.workflows.measuring.free_memory", lambda: 1000)
    said: list[str] = []

    class Told(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    with ExitStack() as opened:
        open_measured("acme/model", None, EvaluationOptions(progress=Told()), opened)
    assert any("block by block" in line for line in said)


def test_compare_takes_ids_and_revisions(outputs: dict[str, Path], cache: Path, held_out: Path) -> None:
    publish(cache, outputs["original"], "acme/model", FIRST, "main")
    publish(cache, outputs["packed"], "acme/model", SECOND, "w4")
    publish(cache, outputs["dense"], "acme/dense", FIRST, "main")
    ids = roundel.compare(
        ["acme/model@w4", "acme/dense"], "acme/model", text=str(held_out), window=64, limit=4
    )
    paths = roundel.compare(
        [outputs["packed"], outputs["dense"]], outputs["original"], text=str(held_out), window=64, limit=4
    )
    for one, other in zip(ids["models"], paths["models"], strict=True):
        for key in ("description", "file_bytes", "bits_per_parameter", "layers", "quality"):
            assert one[key] == other[key], key


def test_revisions(outputs: dict[str, Path], cache: Path) -> None:
    publish(cache, outputs["original"], "acme/model", FIRST, "main")
    publish(cache, outputs["dense"], "acme/model", SECOND, "w4")
    assert locate("acme/model").commit == FIRST
    for place in (
        locate("acme/model@w4"),
        locate("acme/model", "w4"),
        locate("acme/model", SECOND),
        locate(f"acme/model@{SECOND}"),
    ):
        assert place.commit == SECOND
        assert place.name.startswith("acme/model@")
    for wrong, words in (
        (("acme/model@w5", None), "acme/model.*revision w5.*cannot be reached"),
        (("acme/model@w4", "main"), "one of them is expected"),
        ((str(outputs["dense"]), "w4"), "on this machine.*leave --revision out"),
        (("acme/other", None), "no folder acme/other"),
    ):
        with pytest.raises(ModelError, match=words):
            locate(*wrong)


def test_a_snapshot_without_some_files_is_said(outputs: dict[str, Path], cache: Path) -> None:
    snapshot = publish(cache, outputs["original"], "acme/model", FIRST, "main")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        roundel.load("acme/model")


def clutter(folder: Path) -> None:
    """What else people publish."""
    for name in ("pytorch_model.bin", "tf_model.h5", "consolidated.safetensors", "README.md", "image.png"):
        (folder / name).write_bytes(b"x")
    for name in ("onnx/config.json", "original/params.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    (folder / "LICENSE").write_text("free", encoding="utf-8")


def test_only_what_is_wanted_is_fetched(
    llama: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the cache is enough."""
    folder = tmp_path / "published"
    shutil.copytree(llama, folder)
    clutter(folder)
    hub.add("acme/model", folder, FIRST)
    place = locate("acme/model")
    assert place.commit == FIRST
    wanted = {path.name for path in llama.iterdir()} | {"LICENSE", "README.md"}
    assert set(hub.fetched) == wanted
    assert {p.name for p in place.path.iterdir()} == wanted
    before = list(hub.fetched)
    assert locate("acme/model") == place
    assert hub.fetched == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("acme/model") == place
    assert roundel.load("acme/model")[1] is not None


def test_the_hub_has_moved_on(llama: Path, gpt2: Path, hub: Hub) -> None:
    hub.add("acme/model", llama, FIRST)
    hub.add("acme/model", gpt2, SECOND, "other")
    assert roundel.load("acme/model")[0].config.model_type == "llama"
    assert roundel.load("acme/model", revision="other")[0].config.model_type == "gpt2"
    hub.add("acme/model", gpt2, SECOND)
    assert roundel.load("acme/model")[0].config.model_type == "gpt2"
    assert roundel.load(f"acme/model@{FIRST}")[0].config.model_type == "llama"


def test_files_of_the_kind_that_the_model_needs(
    llama: Path, outputs: dict[str, Path], hub: Hub, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(llama, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    hub.add("acme/pickled", pickled, FIRST)
    with pytest.raises(ModelError, match="pickled weights only.*--allow-pickle"):
        locate("acme/pickled")
    assert "pytorch_model.bin" not in hub.fetched
    locate("acme/pickled", allow_pickle=True)
    assert "pytorch_model.bin" in hub.fetched
    hub.add("acme/own", outputs["own"], FIRST)
    assert roundel.load("acme/own")[0] is not None
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.Q4_K.gguf").write_bytes(b"GGUF")
    hub.add("acme/gguf", gguf, FIRST)
    with pytest.raises(ModelError, match=r"name one of them \(acme/gguf/model.Q4_K.gguf\)"):
        locate("acme/gguf")
    place = locate("acme/gguf/model.Q4_K.gguf")
    assert place.is_gguf
    assert place.commit == FIRST


def test_what_the_hub_refuses(llama: Path, hub: Hub, tmp_path: Path) -> None:
    hub.add("acme/model", llama, FIRST)
    hub.add("acme/gated", llama, FIRST)
    hub.gated.add("acme/gated")
    (tmp_path / "empty").mkdir()
    hub.add("acme/empty", tmp_path / "empty", FIRST)
    for name, revision, words in (
        ("acme/none", None, "the hub knows no model of this id"),
        ("acme/model", "none", "no revision none"),
        ("acme/gated", None, "gated: accept its conditions"),
        ("acme/empty", None, "no weights in acme/empty"),
        ("acme/model/none.gguf", None, "none.gguf"),
    ):
        with pytest.raises(ModelError, match=words) as found:
            locate(name, revision)
        assert isinstance(found.value, RoundelError)
        assert "\n" not in str(found.value)
