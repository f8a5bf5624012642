"""An interrupted and resumed run gives the same bytes as an uninterrupted one."""

import json
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM

import processes
import roundel
from processes import Started
from roundel.engine.journal import Journal
from roundel.engine.snapshots import TuningSnapshots
from roundel.errors import OutputError, Stopped
from zoo import zoo_model

pytestmark = pytest.mark.slow("kills and repeats runs")

DATA = {"nsamples": 12, "seqlen": 48, "batch_size": 5, "holdout": 3}
ACTIVATIONS = {"act_bits": 8, "act_scale": "static", "smooth": 0.5}
RECIPES = {
    "rtn": {"method": "rtn", "group_size": 32},
    "gptq": {"method": "gptq", "nsamples": 12, "seqlen": 48, "true_sequential": True, "block_loss": True},
    "spqr": {"method": "spqr", "bits": 3, "outliers": 0.01, "order": "act_order", "lm_head": True, "nsamples": 12,
             "seqlen": 48},
    "autoround": {"method": "autoround", "iters": 14, "keep": "best-fixed", "judge_every": 3, **DATA},
    "original inputs": {"method": "autoround", "iters": 9, "use_quant_input": False, **DATA},
    "best batch": {"method": "autoround", "iters": 9, "keep": "best-minibatch", "gradient_accumulate_steps": 2,
                   "start": "gptq", "order": "group_aware", **DATA},
    "lrq": {"method": "lrq", "iters": 9, "offsets": True, "input_mixing": 0.5, "lm_head": True, **ACTIVATIONS, **DATA},
    "half": {"method": "flexround", "iters": 9, "amp": "bfloat16", "kv_bits": 8, **DATA},
}  # fmt: skip


# What is measured of a finished folder has its own tests.
quantize = partial(roundel.quantize, held_out=None)


class StopAfter(roundel.Progress):
    """Asks the work to stop after so many signs of life."""

    def __init__(self, left: int) -> None:
        self.left = left

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= 1

    @property
    def stop_asked(self) -> bool:
        self.left -= 1
        return self.left < 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, the report and the card, which tell of the run."""
    timed = ("roundel.json", "report.json", "report.html", "README.md")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in timed}


def told(folder: Path) -> dict:
    """What the manifest reports, without times."""
    manifest = json.loads((folder / "roundel.json").read_text())
    blocks = [{**block, "seconds": 0, "peak_bytes": 0} for block in manifest["blocks"]]
    return {"blocks": blocks, "layers": manifest["layers"], "bits": manifest["bits_per_weight"]}


@pytest.mark.parametrize(
    ("name", "streams"),
    [(name, "memory") for name in RECIPES]
    + [(name, streams) for name in ("lrq", "gptq", "half") for streams in ("files", "whole model")],
)
def test_stopped_again_and_again(name: str, streams: str, llama: Path, tmp_path: Path) -> None:
    settings = {"format": "roundel", **RECIPES[name]}
    how = {
        "memory": {"stream": True},
        "files": {"stream": True, "streams": roundel.StreamOptions(on_disk=True)},
        "whole model": {},
    }[streams]
    text = {} if name == "rtn" else {"calibration": "pydoc"}
    recipe = roundel.Recipe(**settings)

    def run(folder: str, **more: object) -> roundel.Quantized:
        return quantize(llama, recipe, output=tmp_path / folder, **text, **how, **more)

    straight = run("straight")
    interruptions = 0
    for patience in range(1, 1000):
        try:
            resumed = run("resumed", progress=StopAfter(patience * (1 if name == "rtn" else 3)))
            break
        except Stopped:
            interruptions += 1
            assert not (tmp_path / "resumed").exists()
    assert interruptions > 1
    assert contents(tmp_path / "resumed") == contents(tmp_path / "straight")
    assert told(tmp_path / "resumed") == told(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed", "straight"]
    if streams == "whole model":
        for key, weight in straight.weights.items():
            assert resumed.weights[key].equals(weight)
        for key, tensor in straight.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[key], tensor), key


@pytest.mark.parametrize("architecture", ["opt", "bloom", "gpt2"])
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    recipe = roundel.Recipe(**RECIPES["lrq"], format="roundel")
    model = zoo_model(architecture)
    for name, patience in (("resumed", 20), ("straight", 10**9)):
        while True:
            try:
                quantize(
                    model, recipe, calibration="pydoc", stream=True, output=tmp_path / name,
                    progress=StopAfter(patience),
                )  # fmt: skip
                break
            except Stopped:
                patience += 20
    assert contents(tmp_path / "resumed") == contents(tmp_path / "straight")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss"])
def test_mixtures_of_which_some_experts_are_left_out(architecture: str, stream: bool, tmp_path: Path) -> None:
    settings = {"method": "autoround", "iters": 6, "min_tokens": 0.5, "skip": ("*.experts.*.1",), **DATA}
    done = {}
    for name, patience in (("resumed", 10), ("straight", 10**9)):
        while name not in done:
            try:
                done[name] = quantize(
                    zoo_model(architecture), roundel.Recipe(**settings, format="roundel"), calibration="pydoc",
                    stream=stream, output=tmp_path / name, progress=StopAfter(patience),
                )  # fmt: skip
            except Stopped:
                patience += 10
    assert contents(tmp_path / "resumed") == contents(tmp_path / "straight")
    assert told(tmp_path / "resumed") == told(tmp_path / "straight")
    if not stream:
        for key, tensor in done["straight"].model.state_dict().items():
            assert torch.equal(done["resumed"].model.state_dict()[key], tensor), key


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed the POSIX way")
def test_killed_at_random_moments(
    llama: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The short form of benchmarks/crash.py."""
    words = [
        "quantize", llama, "--calibration", "pydoc", "--group-size", 32,
        *(f"--set={key}={value}" for key, value in DATA.items()), "--set=iters=120",
    ]  # fmt: skip

    def start(folder: str) -> Started:
        return Started(tmp_path_factory.mktemp("said"), processes.command, *words, "-o", tmp_path / folder)

    straight = start("straight")
    assert straight.wait() == 0, straight.stderr
    moments = random.Random(0)
    kills = 0
    for _ in range(3):
        run = start("killed")
        run.await_words("Quantizing blocks")
        time.sleep(moments.uniform(0.0, 1.0))
        run.process.kill()
        kills += run.wait() != 0
    if not (tmp_path / "killed").exists():
        last = start("killed")
        assert last.wait() == 0, last.stderr
    assert kills
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "straight"]


def stop(
    model: Path | torch.nn.Module, recipe: roundel.Recipe, out: Path, patience: int, **more: object
) -> None:
    with pytest.raises(Stopped):
        quantize(model, recipe, output=out, progress=StopAfter(patience), **more)


def test_text_that_the_model_wrote_is_not_written_again(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roundel.calibration import gather

    written = []
    sample = gather.sample_from_model
    monkeypatch.setattr(gather, "sample_from_model", lambda *given: written.append(1) or sample(*given))
    recipe = roundel.Recipe(**RECIPES["gptq"])
    quantize(llama, recipe, output=tmp_path / "straight")
    stop(llama, recipe, tmp_path / "out", 15)
    resumed = quantize(llama, recipe, output=tmp_path / "out")
    assert len(written) == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert resumed.manifest["calibration"]["source"] == "text sampled from the model itself"
    # Another seed is another text.
    stop(llama, recipe, tmp_path / "again", 15)
    quantize(llama, recipe.with_settings(seed=1), output=tmp_path / "again", restart=True)
    assert len(written) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "out", "straight"]


def test_an_unfinished_run_of_something_else_is_not_gone_on_with(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(**RECIPES["autoround"])
    out = tmp_path / "out"
    stop(llama, recipe, out, 40, calibration="pydoc")
    with pytest.raises(OutputError, match=r"recipe\.bits was 4 and is 3 now.*--restart"):
        quantize(llama, recipe.with_settings(bits=3), output=out, calibration="pydoc")
    with pytest.raises(OutputError, match=r"calibration was \"\w+\" and is \"\w+\" now"):
        quantize(llama, recipe, output=out, calibration="self")
    model = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        model.lm_head.weight[5, 5] += 1e-3
    _, tokenizer = roundel.load(llama)
    with pytest.raises(OutputError, match=r"model was \"\w+\" and is \"\w+\" now"):
        quantize(model, recipe, output=out, calibration="pydoc", tokenizer=tokenizer)
    # The format decides no integer; a new beginning is asked for.
    quantize(llama, recipe.with_settings(format="dense"), output=out, calibration="pydoc")
    stop(llama, recipe, out, 40, calibration="pydoc", overwrite=True)
    other = recipe.with_settings(bits=3)
    quantize(llama, other, output=out, calibration="pydoc", overwrite=True, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "roundel.json").read_text())["recipe"]["bits"] == 3


def test_a_damaged_piece_is_said(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(**RECIPES["autoround"])
    stop(llama, recipe, tmp_path / "out", 45, calibration="pydoc")
    piece = tmp_path / ".out.roundel" / "piece-00000.safetensors"
    piece.write_bytes(piece.read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"piece-00000.*cannot be read.*--restart"):
        quantize(llama, recipe, output=tmp_path / "out", calibration="pydoc")


def test_a_stream_that_is_not_whole_is_said(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(**RECIPES["autoround"])
    stop(llama, recipe, tmp_path / "out", 45, calibration="pydoc")
    stream = tmp_path / ".out.roundel" / "quantized-00001.bin"
    content = stream.read_bytes()
    for damaged in (content[:-4], content + b"1234", None):
        stream.unlink()
        if damaged is not None:
            stream.write_bytes(damaged)
        with pytest.raises(
            OutputError, match=r"quantized-00001.bin is not what was written there.*--restart"
        ):
            quantize(llama, recipe, output=tmp_path / "out", calibration="pydoc")
        stream.write_bytes(content)
    quantize(llama, recipe, output=tmp_path / "out", calibration="pydoc")


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_when_the_output_was_there_already(
    overwrite: bool, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = roundel.Recipe(**RECIPES["rtn"])
    out = tmp_path / "out"

    def die(journal: Journal) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            quantize(llama, recipe, output=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.roundel", "out"]
    if overwrite:
        quantize(llama, recipe, output=out, overwrite=True)
    else:
        with pytest.raises(OutputError, match="exists and is not empty"):
            quantize(llama, recipe, output=out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_on_one_output_folder(llama: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.roundel").mkdir()
    with (
        FileLock(tmp_path / ".out.roundel" / "lock"),
        pytest.raises(OutputError, match=r"another run is writing .*out"),
    ):
        quantize(llama, roundel.Recipe(**RECIPES["rtn"]), output=tmp_path / "out")


def test_snapshots_come_by_the_clock_too(llama: Path, tmp_path: Path, monkeypatch) -> None:
    """Killed, not stopped: the state inside a block is there without having been asked for."""
    written = []
    write = TuningSnapshots._write
    monkeypatch.setattr(
        TuningSnapshots, "_write", lambda store, found: (written.append(found.step), write(store, found))
    )
    monkeypatch.setattr(TuningSnapshots, "after_step", _eager(TuningSnapshots.after_step))
    recipe = roundel.Recipe(**RECIPES["autoround"])
    quantize(llama, recipe, output=tmp_path / "out", calibration="pydoc")
    assert written == [*range(1, 15)] * 2


def _eager(after_step):
    def eager(store, snapshot):
        store.every, store._cost = 0.0, 0.0
        after_step(store, snapshot)

    return eager
