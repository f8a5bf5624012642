"""Every folder that a run writes carries a card, which is Roundel's until somebody edits it."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import roundel
from hub import publish
from roundel.cli.app import main
from roundel.errors import OutputError, Stopped
from roundel.formats import CONTAINERS
from roundel.formats.clients import clients_of
from roundel.report.card import render_card
from roundel.system.belongings import take_stock
from zoo import zoo_model
from zoo.gguf_file import write_gguf

pytestmark = [pytest.mark.reports, pytest.mark.slow("writes reports of many runs")]

RTN = roundel.Recipe(method="rtn", group_size=32)
COMMIT = "1" * 40


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def of_the_hub(llama: Path, cache: Path, home: Path) -> str:
    publish(cache, llama, "acme/model", COMMIT, "main")
    return "acme/model"


def of_a_file(llama: Path, cache: Path, home: Path) -> Path:
    return write_gguf(llama, home / "model.gguf")


def in_memory(llama: Path, cache: Path, home: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama)


def an_adapter(llama: Path, cache: Path, home: Path) -> Path:
    publish(cache, llama, "acme/base", COMMIT, "main")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), lora).save_pretrained(home / "adapter")
    path = home / "adapter" / "adapter_config.json"
    about = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": "acme/base"}
    path.write_text(json.dumps(about), encoding="utf-8")
    return home / "adapter"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("make", "base", "relation"),
    [
        (lambda llama, *_: llama, None, None),
        (of_the_hub, "acme/model", "quantized"),
        (of_a_file, None, None),
        (in_memory, None, None),
        (an_adapter, "acme/base", "finetune"),
    ],
    ids=["folder", "hub", "gguf", "memory", "adapter"],
)
def test_whatever_the_source_is(
    make: Callable[..., Any],
    base: str | None,
    relation: str | None,
    stream: bool,
    llama: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    model = make(llama, cache, tmp_path)
    stream = stream and make is not in_memory
    roundel.quantize(model, RTN, output=out, stream=stream)
    about = metadata_load(out / "README.md")
    assert about.get("base_model") == base
    assert about.get("base_model_relation") == relation
    assert about["license"] == "unknown"
    assert about["library_name"] == "transformers"
    assert card(out).split("-->")[1] == render_card(report_of(out), "out").split("-->")[1]
    assert str(tmp_path) not in card(out)
    assert str(llama.parent) not in card(out)
    take_stock(out)
    roundel.quantize(llama, RTN, output=out, held_out=None, overwrite=True)
    assert "Not measured: it was not asked for." in card(out)


def test_a_card_that_somebody_edited_is_theirs(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    roundel.quantize(llama, RTN, output=out, held_out=None)
    before = card(out)
    (out / "README.md").unlink()
    roundel.render_report(out)
    assert card(out) == before
    (out / "README.md").write_text(before + "\nMine.\n", encoding="utf-8")
    roundel.render_report(out)
    assert card(out) == before + "\nMine.\n"
    with pytest.raises(OutputError, match=r"README\.md \(changed since\), which roundel did not write"):
        roundel.quantize(llama, RTN, output=out, held_out=None, overwrite=True)


def test_a_run_that_is_stopped_while_it_measures_leaves_one(llama: Path, tmp_path: Path) -> None:
    class StopMeasuring(roundel.Progress):
        measuring = False

        def say(self, text: str) -> None:
            pass

        @property
        def stop_asked(self) -> bool:
            return (tmp_path / "out").exists()

    with pytest.raises(Stopped):
        roundel.quantize(llama, RTN, output=tmp_path / "out", progress=StopMeasuring())
    assert "Not measured: the run was stopped before." in card(tmp_path / "out")


def test_no_fault_of_the_card_costs_the_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("roundel.workflows.report.write_card", fail)
    result = roundel.quantize(llama, RTN, output=tmp_path / "out", held_out=None)
    assert not result.no_report
    assert (tmp_path / "out" / "report.html").is_file()
    roundel.load(tmp_path / "out")


# Of formats that do not carry round-to-nearest in groups of 32.
_TILES = {"bits": 3, "group_size": 16, "scale_bits": 3, "zero_bits": 3, "tile_rows": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "spqr": {"method": "spqr", "nsamples": 4, "seqlen": 32, **_TILES},
    "auto-round": {"method": "rtn", "group_size": 32, "skip": ["*.k_proj", "*.v_proj"]},
    "gguf": {"method": "rtn", "type": "q8_0"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_all_that_a_format_says_opens_it_has_a_command(name: str, llama: Path, tmp_path: Path) -> None:
    settings = SETTINGS.get(name, {"method": "rtn", "group_size": 32}) | {"format": name}
    model = (
        write_gguf(llama, tmp_path / "m.gguf") if name == "gguf" else llama
    )  # which takes its metadata from one
    result = roundel.quantize(model, roundel.Recipe(**settings), output=tmp_path / "out", held_out=None)
    assert all(clients_of(words) for words in result.manifest["opens_in"])
    known = [client.library for words in result.manifest["opens_in"] for client in clients_of(words)]
    library = metadata_load(tmp_path / "out" / "README.md")["library_name"]
    assert library == next((one for one in known if one), "roundel")


def fenced(text: str, language: str, *begin: str) -> str:
    """The first block of code in a language that begins in a way."""
    found = re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)
    return next(code for code in found if code.startswith(begin or ("",)))


def run(line: str) -> None:
    before, sys.argv = sys.argv, shlex.split(line)
    try:
        with pytest.raises(SystemExit) as leaving:
            main()
    finally:
        sys.argv = before
    assert not leaving.value.code


def test_its_commands_do_what_they_say(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that can be run here: opening by transformers and by Roundel, and making the folder again."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama, "the model")
    recipe = roundel.Recipe(method="signround", bits=3, group_size=32, iters=3, nsamples=8, seqlen=32, seed=7)
    roundel.quantize("the model", recipe, output="it's small", held_out=None, calibration="pydoc")
    text = card(Path("it's small"))
    exec(fenced(text, "python", "from transformers"), {})
    run(fenced(text, "bash", "roundel generate"))
    assert len(capsys.readouterr().out.split()) > 8
    Path("recipe.yaml").write_text(fenced(text, "yaml"), encoding="utf-8")
    line = fenced(text, "bash", "roundel quantize")
    assert line.endswith(" --calibration DATA")
    assert "Calibration data (`DATA`): pydoc: Python's reference manual" in text
    line = line.replace("DATA", "pydoc").replace("-o 'it'\"'\"'s small'", "-o again")
    run(f"{line} --held-out none")
    told = {"roundel.json", "report.json", "report.html", "README.md"}
    names = {path.name for path in Path("again").iterdir()} - told
    assert "model.safetensors" in names
    for name in names:
        assert Path("again", name).read_bytes() == Path("it's small", name).read_bytes(), name


@pytest.mark.parametrize("architecture", ["gemma3", "gpt2", "chatglm_like"])
def test_models_that_open_in_another_way(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside one that sees, with another kind of layers, with code of its own: the command opens them."""
    monkeypatch.chdir(tmp_path)
    recipe = roundel.Recipe(method="rtn", group_size=32, format="dense")
    roundel.quantize(zoo_model(architecture), recipe, output="out", held_out=None, trust_remote_code=True)
    exec(fenced(card(Path("out")), "python", "from transformers"), {})
