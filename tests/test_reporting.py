"""Every run leaves a report, measured from what was written."""

import json
import sys
from pathlib import Path

import pytest
import torch

import roundel
from roundel import reporting
from roundel.errors import CalibrationError, ModelError, RoundelError
from zoo import zoo_model

pytestmark = pytest.mark.reports

RTN = roundel.Recipe(method="rtn", bits=3, group_size=32)


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


class Listener(roundel.Progress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="module")
def written(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reported") / "out"
    recipe = roundel.Recipe(
        method="spqr", bits=3, group_size=16, outliers=0.01, nsamples=8, seqlen=64, format="roundel"
    )
    roundel.quantize(llama, recipe, calibration="pydoc", output=out)
    return out


def test_it_holds_what_was_measured_of_the_written_folder(written: Path, llama: Path) -> None:
    report = report_of(written)
    alone = roundel.evaluate(
        written, reference=llama, text="pydoc", window=reporting.WINDOW, limit=reporting.WINDOWS
    )
    assert report["quality"]["texts"] == alone.plain()["texts"]
    assert report["manifest"] == json.loads((written / "roundel.json").read_text())
    quantized = [layer["name"] for layer in report["manifest"]["layers"] if layer["bits"]]
    assert sorted(report["details"]) == sorted(quantized)
    assert all(detail["inputs"] and detail["outliers"] for detail in report["details"].values())
    assert report["standouts"] == []
    page = (written / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in quantized)


def test_a_broken_layer_is_named_where_it_happens(llama: Path, tmp_path: Path, monkeypatch) -> None:
    """The scales of one layer are doubled behind the method's back."""
    from dataclasses import replace

    from roundel.engine import block

    broken = "model.layers.1.self_attn.v_proj"
    honest = block.BlockQuantizer._finish

    def doubling(self, target, quantized):
        if target.view.name == broken:
            quantized = replace(quantized, scale=quantized.scale * 2)
        return honest(self, target, quantized)

    monkeypatch.setattr(block.BlockQuantizer, "_finish", doubling)
    listener = Listener()
    roundel.quantize(llama, RTN, output=tmp_path / "out", progress=listener)
    assert [layer["name"] for layer in report_of(tmp_path / "out")["standouts"]] == [broken]
    assert any(line.startswith(f"Out of line: {broken}") for line in listener.told)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count(broken) > 1


def test_another_text_or_none(llama: Path, held_out: Path, tmp_path: Path) -> None:
    roundel.quantize(llama, RTN, output=tmp_path / "other", held_out=str(held_out))
    assert report_of(tmp_path / "other")["quality"]["texts"][0]["text"] == str(held_out)
    roundel.quantize(llama, RTN, output=tmp_path / "none", held_out=None)
    report = report_of(tmp_path / "none")
    assert (report["quality"], report["no_quality"]) == (None, "it was not asked for")
    assert "it was not asked for" in (tmp_path / "none" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(CalibrationError, match="no text nowhere"):
        roundel.quantize(llama, RTN, output=tmp_path / "never", held_out="nowhere")
    assert not (tmp_path / "never").exists()


def test_a_model_in_memory_has_no_original_any_more(llama: Path, load_model, tmp_path: Path) -> None:
    model, tokenizer = load_model(llama)
    roundel.quantize(model, RTN, tokenizer=tokenizer, output=tmp_path / "out")
    text = report_of(tmp_path / "out")["quality"]["texts"][0]
    assert text["perplexity"]["value"] > 1
    assert text["kl"] is None


def test_what_cannot_be_measured_is_written_all_the_same(llama: Path, load_model, tmp_path: Path) -> None:
    model, _ = load_model(llama)
    listener = Listener()
    roundel.quantize(model, RTN, output=tmp_path / "out", progress=listener)
    assert "comes without a tokenizer" in report_of(tmp_path / "out")["no_quality"]
    assert any("was not measured" in line for line in listener.told)
    assert (tmp_path / "out" / "report.html").is_file()


def test_without_the_libraries_of_the_page(llama: Path, tmp_path: Path, monkeypatch) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(
        "roundel.report.page.find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    listener = Listener()
    roundel.quantize(llama, RTN, output=tmp_path / "out", progress=listener)
    assert any("pip install 'roundel[report]'" in line for line in listener.told)
    assert not (tmp_path / "out" / "report.html").exists()
    with pytest.raises(RoundelError, match=r"pip install 'roundel\[report\]'"):
        roundel.render_report(tmp_path / "out")
    monkeypatch.undo()
    page = roundel.render_report(tmp_path / "out")
    assert page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_a_page_is_made_anew_to_the_last_byte(written: Path) -> None:
    before = (written / "report.html").read_bytes()
    (written / "report.html").unlink()
    assert roundel.render_report(written).read_bytes() == before


def test_folders_without_a_report(llama: Path, written: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a folder written by roundel quantize is wanted"):
        roundel.render_report(llama)
    (tmp_path / "roundel.json").write_bytes((written / "roundel.json").read_bytes())
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ModelError, match=r"report.json cannot be read"):
        roundel.render_report(tmp_path)


@pytest.mark.parametrize("architecture", ["mamba2", "gpt_oss", "chatglm_like", "gpt2"])
def test_any_architecture(architecture: str, tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="rtn", bits=4, group_size=32, format="dense")
    roundel.quantize(zoo_model(architecture), recipe, output=tmp_path / "out", trust_remote_code=True)
    report = report_of(tmp_path / "out")
    assert report["quality"]["texts"][0]["kl"]["mean"]["value"] > 0, report.get("no_quality")
    assert report["standouts"] == []
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_command_says_how_good_it_is(llama: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from roundel.cli.app import main

    arguments = ["roundel", "quantize", str(llama), "-o", str(tmp_path / "out"), "--method", "rtn"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--held-out", "pydoc"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "On pydoc perplexity" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(sys, "argv", ["roundel", "report", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "report.html" in capsys.readouterr().out


def test_random_state_is_left_alone(llama: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    roundel.quantize(llama, RTN, output=tmp_path / "out")
    assert torch.equal(before, torch.get_rng_state())
