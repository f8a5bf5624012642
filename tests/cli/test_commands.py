"""The command line as a user meets it: processes, exit codes, messages."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from roundel.cli.app import app, main
from zoo import zoo_model

FAST = ("--set", "nsamples=16", "--set", "seqlen=32", "--set", "batch_size=4", "--group-size", "32")


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """The command in this process, through `main` with its error handling."""
    monkeypatch.setattr(sys, "argv", ["roundel", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        main()
    output = capsys.readouterr()
    return leaving.value.code, output.out, " ".join(output.err.split())


def test_from_model_to_text(llama: Path, held_out: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    code, text, log = run(
        capsys, monkeypatch, "quantize", llama, "-o", out, "--bits", 3, "--calibration", "pydoc", "--set", "iters=5",
        *FAST,
    )  # fmt: skip
    assert code == 0
    assert "14 Linears at 3.594 bits per weight" in " ".join(text.split())
    assert "Recipe custom: autoround, 3 bit" in log

    report = tmp_path / "report.json"
    code, text, _ = run(
        capsys, monkeypatch, "eval", out, "--reference", llama, "--text", held_out, "--window", 64, "--limit", 4,
        "--json", report,
    )  # fmt: skip
    assert code == 0
    figures = json.loads(report.read_text())["texts"][0]
    assert f"{figures['kl']['mean']['value']:.5f}" in text
    assert f"{figures['perplexity']['value']:.4f}" in text
    assert "windows of 64 tokens" in text

    code, text, _ = run(capsys, monkeypatch, "eval", out, "--text", held_out, "--limit", 1)
    assert code == 0
    assert "1 window of 512 tokens" in " ".join(
        text.split()
    )  # all that the model reaches, where nothing is said

    code, text, _ = run(capsys, monkeypatch, "inspect", out)
    assert code == 0
    assert "model.layers.1.mlp.down_proj" in text
    assert "output head" in text
    assert "bits per parameter of the whole" in text

    code, text, _ = run(capsys, monkeypatch, "generate", out, "The statement", "--max-new-tokens", 5)
    assert code == 0
    assert text.startswith("The statement")


def test_spqr_from_model_to_text(llama: Path, held_out: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    code, text, log = run(
        capsys, monkeypatch, "quantize", llama, "-o", out, "--recipe", "spqr-near-lossless", "--outliers", "0.5%",
        "--set", "target_bits=null", "--calibration", "pydoc", "--set", "nsamples=16", "--set", "seqlen=64",
    )  # fmt: skip
    assert code == 0
    assert "0.50% outliers, written as roundel" in log
    assert "bits per parameter of the whole" in " ".join(text.split())
    code, text, _ = run(capsys, monkeypatch, "inspect", out)
    assert code == 0
    words = " ".join(text.split())
    assert "(4.785 as papers count), 0.500% outliers" in words
    assert "bits per parameter of the whole" in words
    code, text, _ = run(capsys, monkeypatch, "eval", out, "--text", held_out, "--window", 64, "--limit", 2)
    assert (code, "perplexity" in text) == (0, True)


def test_quantized_activations_from_model_to_text(
    llama: Path, held_out: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    out = tmp_path / "out"
    code, text, log = run(
        capsys, monkeypatch, "quantize", llama, "-o", out, "--recipe", "lrq-w8a8", "--calibration", "pydoc",
        "--kv-bits", 6, *FAST, "--set", "iters=3",
    )  # fmt: skip
    assert code == 0
    assert (
        "lrq, 8 bit, groups of 32, asymmetric, search start, inputs 8 bit asym, static, KV cache 6 bit" in log
    )
    assert "as many numbers learned as there are weights" in " ".join(text.split())
    code, text, _ = run(capsys, monkeypatch, "inspect", out)
    assert code == 0
    words = " ".join(text.split())
    assert "smoothed into post_attention_layernorm" in words
    assert "not smoothed: no norm before it" in words
    assert "8 bit asym, static" in words
    code, text, _ = run(capsys, monkeypatch, "generate", out, "The statement", "--max-new-tokens", 5)
    assert code == 0
    report = tmp_path / "report.json"
    measure = ("--reference", llama, "--text", held_out, "--window", 64, "--limit", 4, "--json", report)
    measure = (*measure, "--no-packed")
    _, text, _ = run(capsys, monkeypatch, "eval", out, *measure)
    said = "inputs of 14 Linears 8 bit asym, static; KV cache 6 bit asym, per token and head"
    assert f"Quantized in this model: {said}" in " ".join(text.split())
    assert json.loads(report.read_text())["activations"] == said
    quantized = json.loads(report.read_text())["texts"][0]["kl"]["mean"]["value"]
    # Without our file compressed-tensors' own hooks do the same work.
    (out / "roundel_activations.json").unlink()
    run(capsys, monkeypatch, "eval", out, *measure)
    assert json.loads(report.read_text())["texts"][0]["kl"]["mean"]["value"] == quantized
    assert quantized > 0


def test_inspect_tells_before_a_run_what_becomes_of_everything(capsys, monkeypatch) -> None:
    model = zoo_model("qwen2_moe")
    options = [
        "--method",
        "gptq",
        "--set",
        "format=dense",
        "--set",
        "skip=['*.q_proj']",
        "--set",
        "group_size=32",
    ]
    options += ["--set", "layers={'*.down_proj.*': {'bits': 8}}"]
    code, text, _ = run(capsys, monkeypatch, "inspect", model, *options)
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    said = {row[1]: row for row in rows if row[1]}
    assert said["model.layers.0.mlp.experts.gate_up_proj.0-3"][2:5] == [
        "Expert", "128x96", "gptq, 4 bit, groups of 32, asymmetric",
    ]  # fmt: skip
    assert said["model.layers.1.mlp.experts.down_proj.0-3"][4] == "gptq, 8 bit, groups of 32, asymmetric"
    assert said["model.layers.0.self_attn.q_proj"][4:] == ["", "left out by a skip pattern"]
    assert "router" in said["model.layers.0.mlp.gate"][5]
    assert "router" in said["model.layers.0.mlp.shared_expert_gate"][5]
    assert "output head" in said["lm_head"][5]
    matrices = [
        name for name, p in AutoModelForCausalLM.from_pretrained(model).named_parameters() if p.ndim > 1
    ]
    assert len(said) == len(matrices)
    assert "28 Linears quantized" in text


def test_inspect_shows_what_there_is_though_the_format_does_not_carry_it(capsys, monkeypatch) -> None:
    code, text, log = run(capsys, monkeypatch, "inspect", zoo_model("gpt2"), "--method", "rtn")
    assert code == 5
    assert "transformer.h.1.mlp.c_proj" in text
    assert "8 Linears quantized" in text
    assert "is a Conv1D; compressed-tensors carries Linear layers only: use --format dense" in log


def test_inspect_after_a_run_shows_the_tokens_that_each_linear_saw(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    out = tmp_path / "out"
    run(
        capsys, monkeypatch, "quantize", zoo_model("qwen3_moe"), "-o", out, "--method", "gptq", "--format", "roundel",
        "--calibration", "pydoc", "--set", "nsamples=2", "--set", "seqlen=16", "--group-size", 32,
    )  # fmt: skip
    code, text, _ = run(capsys, monkeypatch, "inspect", out)
    assert code == 0
    assert re.search(r"model\.layers\.0\.self_attn\.q_proj .*│ +32 │", text)
    assert re.search(r"experts\.down_proj\.\d .*rounded to nearest: saw \d+ tokens, 16 expected", text)
    assert re.search(r"\d+ with a note", text)


def test_inspect_counts_every_byte(llama: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from roundel.records.folder import read_contents

    run(capsys, monkeypatch, "quantize", llama, "-o", tmp_path / "out", "--recipe", "rtn-w4g128", "--bits", 8)
    contents = read_contents(tmp_path / "out")
    original = sum(f.stat().st_size for f in llama.glob("*.safetensors")) / 4
    assert contents.parameters == pytest.approx(original, rel=0.01)
    assert sum(contents.stored_bytes.values()) == pytest.approx(contents.file_bytes, rel=0.05)


def test_recipes_lists_recipes_and_keys(capsys, monkeypatch) -> None:
    code, text, _ = run(capsys, monkeypatch, "recipes")
    assert code == 0
    for word in ("autoround-w2g128", "gradient_accumulate_steps", "minmax_lr"):
        assert word in text


def test_options_overrule_the_recipe(llama: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    code, _, log = run(
        capsys, monkeypatch, "quantize", llama, "-o", tmp_path / "out", "--recipe", "autoround-light", "--method",
        "rtn", "--sym", "--format", "dense", "--bits", 5,
    )  # fmt: skip
    assert code == 0
    assert "autoround-light (changed): rtn, 5 bit, groups of 128, symmetric" in log
    manifest = json.loads((tmp_path / "out" / "roundel.json").read_text())
    assert manifest["recipe"]["format"] == "dense"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--bits", "1"], 2, "bits=1: input should be greater than or equal to 2"),
        (["--bits", "9"], 2, "bits=9"),
        (["--set", "iterations=5"], 2, "unknown key iterations; known keys: act_bits"),
        (["--set", "iters"], 2, "key=value is expected"),
        (["--recipe", "gptq-w4"], 2, "no recipe 'gptq-w4'"),
        (["--calibration", "nowhere.jsonl", "--set", "seqlen=64"], 4, "no file nowhere.jsonl"),
        (["--calibration", "{empty}", "--set", "seqlen=64"], 4, "no text in"),
        (["--calibration", "{short}", "--set", "seqlen=64"], 4, "give more text"),
        (["--group-size", "36"], 5, "group_size 36 does not fit in_features 96"),
        (["--method", "spqr", "--target-bits", "2.5"], 2, "takes at least"),
        (
            ["--method", "spqr", "--outliers", "1%", "--target-bits", "5"],
            2,
            "each decide the number of outliers",
        ),
        (["--method", "spqr", "--format", "spqr", "--calibration", "pydoc"], 5, "use --format roundel"),
        (["--device", "warp"], 2, "device 'warp' cannot be used"),
    ],
)
def test_bad_input_is_one_message_and_no_output(
    arguments: list[str], code: int, message: str, llama: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short")
    filled = [a.format(empty=tmp_path / "empty.txt", short=tmp_path / "short.txt") for a in arguments]
    out = tmp_path / "target" / "out"
    found, _, log = run(capsys, monkeypatch, "quantize", llama, "-o", out, *filled)
    assert found == code
    assert log.count("error:") == 1
    assert message in log
    assert "Traceback" not in log
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_an_occupied_output_is_refused_before_the_work(
    llama: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "precious").write_text("x")
    code, _, log = run(capsys, monkeypatch, "quantize", llama, "-o", tmp_path, "--method", "rtn")
    assert code == 6
    assert "--overwrite" in log
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_missing_models(tmp_path: Path, capsys, monkeypatch) -> None:
    for command in (
        ["quantize", "./none", "-o", tmp_path / "out"],
        ["eval", "./none"],
        ["generate", "./none", "x"],
        ["inspect", "./none"],
    ):
        code, _, log = run(capsys, monkeypatch, *command)
        assert (code, log.count("no folder ./none")) == (3, 1)


def test_wrong_words_are_usage_errors() -> None:
    result = CliRunner().invoke(app, ["quantize", "m", "-o", "o", "--method", "awq"])
    assert result.exit_code == 2
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="signals are sent the POSIX way")
def test_ctrl_c_stops_after_the_step_and_the_same_command_goes_on(
    llama: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    command = ["quantize", str(llama), "-o", str(tmp_path / "out"), "--calibration", "pydoc", *FAST]
    command += ["--set", "iters=300"]
    process = subprocess.Popen([sys.executable, "-m", "roundel", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "Quantizing blocks" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "Stopping after this step" in rest
    assert "stopped after 0 finished blocks of 2; the same command goes on from here" in " ".join(
        rest.split()
    )
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == [".out.roundel"]
    assert (tmp_path / ".out.roundel" / "tuning-00000.safetensors").is_file()
    code, _, log = run(capsys, monkeypatch, *command)
    assert code == 0, log
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_usage_error_in_a_process_has_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "roundel", "quantize", "model", "--bits", "four"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
