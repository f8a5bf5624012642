"""A whole model with an adapter beside it: the model, with or without peft, and a sentence about the adapter.

The oracle is the folder without the adapter.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import roundel
from roundel.cli.app import main
from roundel.errors import ModelError
from roundel.model import beside
from roundel.system.progress import Progress
from zoo import zoo_model

pytestmark = pytest.mark.slow("does every command with and without peft")

RTN = {"method": "rtn", "bits": 4, "group_size": 32, "format": "roundel"}
IDS = torch.arange(3, 35).view(2, -1)
TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "opt": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "mixtral": ["q_proj"],
}


class Listening(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(params=["peft", "no peft"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With peft, and as if it were not there."""
    if request.param == "no peft":
        monkeypatch.setattr("roundel.model.adapter.find_spec", lambda name: None)
        for module in ("transformers.models.auto.auto_factory", "transformers.integrations.peft"):
            monkeypatch.setattr(f"{module}.is_peft_available", lambda: False)
    return request.param == "peft"


def with_adapter(name: str, folder: Path, **saving: Any) -> Path:
    """What training leaves: the base, and in the same folder what was trained."""
    shutil.copytree(zoo_model(name), folder)
    if saving:
        (folder / "model.safetensors").unlink()
        AutoModelForCausalLM.from_pretrained(zoo_model(name)).save_pretrained(folder, **saving)
    base = AutoModelForCausalLM.from_pretrained(zoo_model(name))
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS[name], task_type="CAUSAL_LM"))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.constant_(parameter, 0.1)
    tuned.save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()
    return folder


def says(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def written(folder: Path) -> dict[str, str]:
    told = ("roundel.json", "report.json", "report.html", "README.md")
    names = [p for p in folder.iterdir() if p.name not in told]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


@pytest.mark.parametrize("name", TARGETS)
def test_same_weights_and_same_bytes(name: str, installed: bool, tmp_path: Path) -> None:
    both, alone = with_adapter(name, tmp_path / "both"), zoo_model(name)
    assert torch.equal(says(roundel.load(both)[0]), says(roundel.load(alone)[0]))
    for stream in (False, True):
        found, wanted = tmp_path / f"found-{stream}", tmp_path / f"wanted-{stream}"
        heard = Listening()
        result = roundel.quantize(
            both, roundel.Recipe.create(**RTN), output=found, stream=stream, held_out=None, progress=heard
        )
        roundel.quantize(alone, roundel.Recipe.create(**RTN), output=wanted, stream=stream, held_out=None)
        assert written(found) == written(wanted)
        assert [line for line in heard.said if "without the adapter" in line] == [
            f"{both} holds a whole model and, beside it, an adapter (adapter_config.json): the model is taken as it "
            "is, without the adapter; to merge it, name a folder that holds the adapter alone, with --base (base=)"
        ]
        assert result.manifest["original"]["left_out"] in heard.said
        assert not list(found.glob("adapter*"))


@pytest.mark.parametrize("saving", [{"max_shard_size": "200KB"}])
def test_of_several_files(saving: dict[str, Any], installed: bool, tmp_path: Path) -> None:
    both = with_adapter("llama", tmp_path / "both", **saving)
    assert (both / "model.safetensors.index.json").is_file()
    assert torch.equal(says(roundel.load(both)[0]), says(roundel.load(zoo_model("llama"))[0]))


def test_measured_planned_and_looked_at(installed: bool, held_out: Path, tmp_path: Path) -> None:
    both, alone = with_adapter("llama", tmp_path / "both"), zoo_model("llama")
    where: Any = {"text": str(held_out), "window": 32, "limit": 2}
    calls: list[Any] = [
        lambda heard: roundel.evaluate(both, reference=alone, progress=heard, **where),
        lambda heard: roundel.evaluate(alone, reference=both, progress=heard, **where),
        lambda heard: roundel.evaluate(both, block_by_block=True, reference=alone, progress=heard, **where),
        lambda heard: roundel.compare([both], alone, progress=heard, **where),
        lambda heard: roundel.compare([alone], both, progress=heard, **where),
        lambda heard: roundel.inspect(both, roundel.Recipe.create(**RTN), progress=heard),
        lambda heard: roundel.plan(both, roundel.Recipe.create(**RTN), progress=heard),
    ]
    for call in calls:
        heard = Listening()
        found = call(heard)
        assert len([line for line in heard.said if "without the adapter" in line]) == 1
        if isinstance(found, roundel.Evaluation):
            assert found.texts[0].kl.mean.value == 0
        elif isinstance(found, dict):
            assert found["models"][0]["quality"]["texts"][0]["kl"]["mean"]["value"] == 0
            assert all(layer["error"] == 0 for layer in found["models"][0]["layers"])
    assert roundel.generate(both, "The", max_new_tokens=4) == roundel.generate(alone, "The", max_new_tokens=4)


def test_beside_what_roundel_wrote(installed: bool, tmp_path: Path) -> None:
    """In every format; the one that transformers does not know looks like an adapter's folder."""
    adapter = with_adapter("llama", tmp_path / "both")
    for format in ("dense", "compressed-tensors", "roundel"):
        out = tmp_path / format
        made = roundel.Recipe.create(**{**RTN, "sym": True, "format": format})
        roundel.quantize(zoo_model("llama"), made, output=out, held_out=None)
        wanted = says(roundel.load(out, packed=False)[0])
        for path in adapter.glob("adapter*"):
            shutil.copyfile(path, out / path.name)
        assert torch.equal(says(roundel.load(out, packed=False)[0]), wanted)


def test_an_adapter_alone_is_still_one(tmp_path: Path) -> None:
    both = with_adapter("llama", tmp_path / "both")
    (tmp_path / "adapter").mkdir()
    for path in both.glob("adapter*"):
        shutil.copyfile(path, tmp_path / "adapter" / path.name)
    found = roundel.quantize(tmp_path / "adapter", roundel.Recipe.create(**RTN), base=str(both))
    plain = roundel.quantize(zoo_model("llama"), roundel.Recipe.create(**RTN))
    assert not torch.equal(says(found.model), says(plain.model))
    assert found.manifest["original"]["adapter"] == str(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is no adapter"):
        roundel.quantize(both, roundel.Recipe.create(**RTN), base=str(zoo_model("llama")))


@pytest.mark.parametrize("command", ["inspect", "quantize", "eval"])
def test_the_command_line_says_so(
    command: str,
    installed: bool,
    held_out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = with_adapter("llama", tmp_path / "both")
    more = {
        "inspect": [],
        "quantize": ["--method", "rtn", "--group-size", "32", "-o", str(tmp_path / "out")],
        "eval": ["--text", str(held_out), "--window", "32", "--limit", "1"],
    }
    monkeypatch.setattr("sys.argv", ["roundel", command, str(both), *more[command]])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert not left.value.code, said.err
    assert "without the adapter" in " ".join((said.out + said.err).split())


def test_transformers_finds_adapters_again_afterwards(tmp_path: Path) -> None:
    both = with_adapter("llama", tmp_path / "both")
    with pytest.raises(RuntimeError), beside.without_adapters():
        raise RuntimeError
    roundel.load(both)
    ours, theirs = roundel.load(both)[0], AutoModelForCausalLM.from_pretrained(both)
    assert not torch.equal(says(ours), says(theirs))
