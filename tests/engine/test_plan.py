"""The plan: what it counts is what a run comes to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import processes
import roundel
from processes import Started
from roundel.engine import count_bytes
from roundel.engine.footprint import bytes_kept
from roundel.engine.plan import Plan
from roundel.errors import CalibrationError, OutputError

pytestmark = pytest.mark.slow("measures the peak of memory in processes of their own")

WIDTH, INNER = 1024, 2816


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that its weights, and not the interpreter, decide the peak: 13 M weights a block."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=8,
        dtype="bfloat16", max_position_embeddings=512,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    ids = torch.randint(512, (8, 128), generator=torch.Generator().manual_seed(0))
    torch.save(ids, folder / "ids.pt")
    return folder


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary that decides the peak: 33 M weights in each of head and embedding, hardly any in blocks."""
    folder = tmp_path_factory.mktemp("wordy")
    config = LlamaConfig(
        vocab_size=1 << 16, hidden_size=512, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        dtype="bfloat16", max_position_embeddings=512,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    torch.save(torch.randint(1 << 16, (8, 16), generator=torch.Generator().manual_seed(0)), folder / "ids.pt")
    return folder


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_peak_is_within_ten_percent_where_it_is_the_heads(
    method: str, wordy: Path, tmp_path: Path
) -> None:
    data = (
        []
        if method == "rtn"
        else ["--set=nsamples=8", "--set=seqlen=16", f"--set=calibration={wordy}/ids.pt"]
    )
    run = Started(
        tmp_path, processes.command, "quantize", wordy / "model", "-o", tmp_path / "out", "--method", method,
        "--set=start=minmax", "--set=embedding_bits=4", "--set=head_bits=4", "--set=format=roundel", *data,
        "--held-out", "none", context=processes.ANEW,
    )  # fmt: skip
    assert run.wait() == 0, run.stderr
    manifest = json.loads((tmp_path / "out" / "roundel.json").read_text())
    assert manifest["plan"]["peak_bytes"] == pytest.approx(manifest["peak_memory_bytes"], rel=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "rtn"},
        {"method": "gptq", "start": "minmax"},
        {"method": "spqr", "bits": 3, "outliers": 0.005},
        {"method": "autoround", "start": "minmax", "iters": 3},
        {"method": "signround", "start": "gptq", "iters": 3},
        {"method": "flexround", "start": "minmax", "iters": 3},
        {"method": "lrq", "start": "minmax", "iters": 3, "offsets": True},
    ],
    ids=lambda settings: settings["method"],
)
def test_the_peak_is_within_ten_percent(settings: dict, wide: Path, tmp_path: Path) -> None:
    """Measured by the process itself, in a process of its own."""
    words = ["quantize", wide / "model", "-o", tmp_path / "out"]
    if settings["method"] != "rtn":
        settings = {
            **settings,
            "nsamples": 8,
            "seqlen": 128,
            "batch_size": 2,
            "calibration": str(wide / "ids.pt"),
        }
    words += [f"--set={key}={value}" for key, value in settings.items()]
    run = Started(tmp_path, processes.command, *words, context=processes.ANEW)
    assert run.wait() == 0, run.stderr
    manifest = json.loads((tmp_path / "out" / "roundel.json").read_text())
    assert manifest["plan"]["peak_bytes"] == pytest.approx(manifest["peak_memory_bytes"], rel=0.1)


def test_the_command_says_what_a_run_will_need(llama: Path, tmp_path: Path) -> None:
    run = Started(
        tmp_path / "said", processes.command, "plan", llama, "--calibration", "pydoc", "-o", tmp_path / "to" / "out",
        "--set=nsamples=16", "--set=seqlen=64", "--set=iters=20", "--set=batch_size=4", "--set=group_size=32",
    )  # fmt: skip
    assert run.wait() == 0, run.stderr
    for words in ("streams of activations", "gradients", "output folder", "One block tried", "give or take"):
        assert words in run.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


def test_the_output_and_the_streams_are_counted_exactly(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="gptq", group_size=32, nsamples=16, seqlen=64, format="roundel")
    counted, tried = roundel.plan(llama, recipe, calibration="pydoc", trial=False)
    assert tried is None
    assert counted.memory["streams of activations"] == 2 * 16 * 64 * 96 * 4
    roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out")
    written = (tmp_path / "out" / "roundel.safetensors").stat().st_size
    headers = 20_000
    assert counted.output <= written <= counted.output + headers


def test_time_grows_with_iterations_and_samples(llama: Path) -> None:
    base = {"group_size": 32, "seqlen": 64, "batch_size": 4}

    def block_seconds(**more: object) -> float:
        _, tried = roundel.plan(llama, roundel.Recipe(**base, **more), calibration="pydoc")
        assert tried is not None
        return tried.block_seconds

    assert block_seconds(iters=4000, nsamples=16) > 5 * block_seconds(iters=40, nsamples=16)


def test_what_autograd_keeps_is_counted() -> None:
    """x W + b, squared: the input, the product."""
    block = torch.nn.Linear(8, 16)
    kept = bytes_kept(lambda x: block(x).square(), torch.ones(4, 8), block)
    assert sorted(kept) == [4 * 8 * 4, 4 * 16 * 4]
    assert all(parameter.requires_grad for parameter in block.parameters())


def planned(free: int, **memory: int) -> Plan:
    parts = {name.replace("_", " "): size for name, size in memory.items()}
    return Plan(memory=parts, output=10, disk=20, free_memory=free, free_disk=100, samples=128)


def test_advice_where_memory_does_not_suffice() -> None:
    large = planned(24 * 10**9, gradients=9 * 10**9, streams_of_activations=32 * 10**9)
    assert large.advice == [
        "128 samples need 41.0 GB of memory and 24.0 GB are free: use --stream-to-disk float32 or --nsamples 60"
    ]
    assert planned(50 * 10**9, gradients=9 * 10**9).advice == []
    batch = planned(5, gradients=4, activations_of_one_batch=4)
    assert batch.advice[0].endswith("use --low-memory")


def test_what_reading_took_is_in_the_peak_and_is_over() -> None:
    plan = replace(planned(10, gradients=8), reading=30)
    assert plan.peak == 30
    assert plan.fits
    assert plan.advice == []


def test_reading_a_text_is_counted(llama: Path, tmp_path: Path) -> None:
    """All of a megabyte is kept, and a piece of it at a time is with the tokenizer."""
    path = tmp_path / "a.txt"
    path.write_text("some words and others, " * 45_000)
    recipe = roundel.Recipe(method="gptq", group_size=32, nsamples=512, seqlen=256)
    counted, _ = roundel.plan(llama, recipe, calibration=str(path), trial=False)
    own = counted.reading - counted.memory["the process itself"]
    assert path.stat().st_size + 100 * (1 << 18) < own < 100 << 20
    counted, _ = roundel.plan(llama, recipe, calibration="self", trial=False)
    assert counted.reading == 0


def test_text_that_the_model_would_write_is_timed_and_not_written(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan wrote all of the text")

    monkeypatch.setattr("roundel.calibration.gather.sample_from_model", refuse)
    recipe = roundel.Recipe(method="gptq", group_size=32, seqlen=64, nsamples=32)
    few, many = (
        roundel.plan(llama, recipe.with_settings(nsamples=count), calibration="self") for count in (32, 3200)
    )
    assert few[0].samples == 32
    assert many[0].samples == 3200
    assert few[1] is not None
    assert many[1] is not None
    assert many[1].seconds > few[1].seconds
    with pytest.raises(CalibrationError, match="exceeds the model's"):
        roundel.plan(llama, recipe.with_settings(seqlen=100_000), calibration="self")


def test_streams_go_to_files_where_memory_does_not_hold_them(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = roundel.Recipe(method="gptq", group_size=32, nsamples=16, seqlen=64)
    roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "memory")
    streams = 2 * 16 * 64 * 96 * 4
    counted, _ = roundel.plan(llama, recipe, calibration="pydoc", trial=False)
    rest = sum(counted.memory.values()) - counted.memory["the process itself"] - streams
    monkeypatch.setattr(count_bytes, "free_memory", lambda: rest + streams // 2)
    said: list[str] = []

    class Listener(roundel.Progress):
        def say(self, text: str) -> None:
            said.append(text)

    roundel.quantize(
        llama, recipe, calibration="pydoc", output=tmp_path / "files", stream=True, held_out=None,
        progress=Listener(),
    )  # fmt: skip
    assert any("kept in files" in words for words in said)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()


def test_a_disk_that_is_too_small_is_said_before_the_work(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(count_bytes.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"the run needs .* on the disk .* 1\.0 kB are free: make room"):
        roundel.quantize(llama, roundel.Recipe(method="rtn", group_size=32), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
