"""Every run leaves a report, measured from what was written."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import roundel
from roundel.errors import CalibrationError, ModelError, RoundelError, Stopped
from roundel.records.manifest import read_manifest
from roundel.records.outcome import Outcome
from roundel.system.belongings import take_stock
from roundel.workflows import report as reporting
from zoo import zoo_model

pytestmark = [pytest.mark.reports, pytest.mark.slow("writes reports of many runs")]

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


@pytest.mark.parametrize("stream", [False, True])
def test_the_tokenizer_is_opened_once(
    stream: bool, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large vocabulary takes seconds to read."""
    opened, take = [], AutoTokenizer.from_pretrained

    def count(place: str, **options: Any) -> Any:
        opened.append(place)
        return take(place, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", count)
    roundel.quantize(llama, RTN, output=tmp_path / "out", stream=stream)
    assert report_of(tmp_path / "out")["quality"] is not None
    assert opened == [str(llama)]


def test_it_holds_what_was_measured_of_the_written_folder(written: Path, llama: Path) -> None:
    report = report_of(written)
    alone = roundel.evaluate(
        written, reference=llama, text="pydoc", window=reporting.WINDOW, limit=reporting.WINDOWS
    )
    assert report["quality"]["texts"] == alone.plain()["texts"]
    assert report["manifest"] == read_manifest(written)
    quantized = [layer["name"] for layer in report["manifest"]["layers"] if layer["bits"]]
    assert sorted(report["details"]) == sorted(quantized)
    assert all(detail["inputs"] and detail["outliers"] for detail in report["details"].values())
    assert report["standouts"] == []
    page = (written / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in quantized)


def test_a_broken_layer_is_named_where_it_happens(llama: Path, tmp_path: Path, monkeypatch) -> None:
    """The scales of one layer are doubled behind the method's back."""
    from dataclasses import replace

    from roundel.engine.finish import Finisher

    broken = "model.layers.1.self_attn.v_proj"
    honest = Finisher.finish

    def doubled(chosen):
        for target, quantized in chosen:
            wrong = target.view.name == broken
            yield target, replace(quantized, scale=quantized.scale * 2) if wrong else quantized

    monkeypatch.setattr(Finisher, "finish", lambda own, chosen, seen: honest(own, doubled(chosen), seen))
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
    with pytest.raises(ModelError, match="a folder written by roundel quantize is expected"):
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


@pytest.mark.parametrize("words", [300, 520])
def test_a_text_of_one_window_has_no_interval(words: int, llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("once upon a time there was a cat " * 200)
    _, tokenizer = roundel.load(llama)
    ids = tokenizer(text.read_text())["input_ids"][:words]
    text.write_text(tokenizer.decode(ids, skip_special_tokens=True))
    listener = Listener()
    done = roundel.quantize(llama, RTN, output=tmp_path / "out", held_out=str(text), progress=listener)
    assert done.no_report == ""
    measured = report_of(tmp_path / "out")["quality"]["texts"][0]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    said = " ".join(listener.told)
    assert measured["windows"] == words // reporting.WINDOW
    if measured["windows"] == 1:
        assert (measured["kl"]["mean"]["low"], measured["kl"]["mean"]["high"]) == (None, None)
        assert "a single window, which tells nothing of another" in page
        assert "a single window, which tells nothing of another" in said
        assert "95 %" not in page
    else:
        assert "95 % interval" in page
        assert "95 % interval" in said


@pytest.mark.parametrize(
    "error", [TypeError("of a bug"), OSError(28, "No space left on device"), MemoryError("all")]
)
@pytest.mark.parametrize(
    "where", ["details", "_measure", "_save", "write_page", "standouts", "open_measured", "sentence"]
)
def test_nothing_in_the_report_costs_the_model(
    where: str, error: Exception, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise error

    listener, out = Listener(), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Outcome if where == "details" else reporting, where, fail)
        done = roundel.quantize(llama, RTN, output=out, progress=listener)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    roundel.load(out)
    said = [line for line in listener.told if str(error) in line]
    assert len(said) == 1
    if where in ("_measure", "open_measured"):
        assert done.no_report == ""
        assert str(error) in report_of(out)["no_quality"]
        assert str(error) in (out / "report.html").read_text(encoding="utf-8")
    else:
        assert said == [done.no_report]
        assert f"`roundel report {out}` makes the report anew" in done.no_report
    # What the sentence says is true.
    page = roundel.render_report(out)
    assert "model.layers.0.self_attn.q_proj" in page.read_text(encoding="utf-8")
    take_stock(out)
    roundel.quantize(llama, RTN, output=out, overwrite=True, held_out=None)


def test_stopped_while_the_result_is_measured(llama: Path, tmp_path: Path, monkeypatch) -> None:
    class Stopping(Listener):
        stop = False

        @property
        def stop_asked(self) -> bool:
            return self.stop

    progress, out = Stopping(), tmp_path / "out"
    opened = reporting.open_measured

    def ask(*given: object, **named: object) -> object:
        progress.stop = True
        return opened(*given, **named)

    monkeypatch.setattr(reporting, "open_measured", ask)
    with pytest.raises(Stopped, match=r"the model in .*out is whole, and its report says"):
        roundel.quantize(llama, RTN, output=out, progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert report_of(out)["no_quality"] == "the run was stopped before"
    assert (out / "report.html").is_file()
    take_stock(out)


@pytest.mark.parametrize("models", [1, 3])
def test_a_comparison_on_one_window(
    models: int, llama: Path, held_out: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from roundel.cli.app import main

    for bits in range(2, 2 + models):
        roundel.quantize(llama, RTN.with_settings(bits=bits), output=tmp_path / f"w{bits}", held_out=None)
    folders = [str(tmp_path / f"w{bits}") for bits in range(2, 2 + models)]
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    given = ["--reference", str(llama), "--text", str(held_out), "--window", "64", "--limit", "1"]
    for command, files in (
        (["compare", *folders], ["--page", str(page), "--json", str(figures)]),
        (["eval", folders[0]], []),
    ):
        monkeypatch.setattr(sys, "argv", ["roundel", *command, *given, *files])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert " .. " not in capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert all(pair["noise"] and pair["difference"]["low"] is None for pair in found["pairs"])
    words = page.read_text(encoding="utf-8")
    assert "95 %" not in words
    assert words.count('id="point-') or words.count("-point-")
