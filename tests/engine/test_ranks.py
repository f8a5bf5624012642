"""Several processes that share a run: the same result, one error for all, a journal that any number goes on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import on_ranks
import psutil
import pytest
import torch
from test_resume import contents

import processes
import roundel
from processes import Started, run_on_ranks, start_ranks
from roundel.engine.streams import FileStream, MemoryStream, StreamHome
from roundel.engine.trainer import BlockData, _Trainer
from roundel.errors import RecipeError
from roundel.methods.options import TuningOptions
from roundel.system.devices import choose_device
from roundel.system.ranks import Ranks
from zoo import zoo_model

pytestmark = pytest.mark.slow("starts processes that work together")

DATA = {"nsamples": 13, "seqlen": 48, "batch_size": 5}
TUNING = {"iters": 14, "holdout": 3, **DATA}
# Blocks that depend on no other one, or nothing but sums in the order of the samples: the same bytes.
EXACT = {
    "rtn": {"method": "rtn", "group_size": 32},
    "search": {"method": "rtn", "start": "search", "bits": 3, **DATA},
    "gptq, unquantized inputs": {"method": "gptq", "use_quant_input": False, **DATA},
    "signround": {"method": "signround", "iters": 9, "holdout": 3, **DATA},
}
# Sums of gradients and second moments over ranks: the same but for the order of the summands.
CLOSE = {
    "gptq": {"method": "gptq", "bits": 3, "true_sequential": True, "block_loss": True, **DATA},
    "spqr": {"method": "spqr", "bits": 3, "outliers": 0.01, "lm_head": True, **DATA},
    "tuned spqr": {"start": "spqr", "outliers": 0.01, "bits": 3, "group_size": 16, "scale_bits": 3, "zero_bits": 3,
                   "round_zero": False, "enable_minmax_tuning": False, **TUNING},
    "autoround": {"bits": 3, "keep": "best-fixed", "judge_every": 3, "gradient_accumulate_steps": 2,
                  "embedding_bits": 5, "head_bits": 6, **TUNING},
    "lrq": {"method": "lrq", "offsets": True, "input_mixing": 0.5, "act_bits": 8, "act_scale": "static",
            "act_range": "mse", "smooth": 0.5, **TUNING},
    "kv": {"method": "flexround", "kv_bits": 8, "start": "gptq", **TUNING},
}  # fmt: skip


def work() -> dict[str, dict]:
    entries = {}
    for name, settings in {**EXACT, **CLOSE}.items():
        how: dict[str, object] = {} if name == "rtn" else {"calibration": "pydoc"}
        # A model in memory and a streamed one.
        how["stream"] = name in ("search", "signround", "autoround", "lrq")
        entries[name] = {"recipe": {"format": "roundel", **settings}, "how": how}
    entries["gptq"]["how"].pop("stream")
    return entries


@pytest.fixture(scope="module")
def results(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of one, two and four ranks, in folders `1`, `2` and `4`."""
    folder = tmp_path_factory.mktemp("ranks")
    for size in (1, 2, 4):
        run_on_ranks(size, folder, on_ranks.quantize_all, llama, work(), folder / str(size))
    return folder


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", EXACT)
def test_the_same_bytes(name: str, size: int, results: Path) -> None:
    assert contents(results / str(size) / name) == contents(results / "1" / name)


def test_experts_on_ranks(tmp_path: Path) -> None:
    """Each rank sees its own tokens of an expert; whether they are enough is decided by all of them together.

    By torchrun, and a script of one's own.
    """
    recipes = {
        name: {"format": "roundel", "min_tokens": 0.5, **EXACT[name]}
        for name in ("signround", "gptq, unquantized inputs")
    }
    entries = {
        name: {"recipe": recipe, "how": {"calibration": "pydoc", "stream": name == "signround"}}
        for name, recipe in recipes.items()
    }
    model = zoo_model("qwen3_moe")
    on_ranks.quantize_all(model, entries, tmp_path / "1")
    (tmp_path / "work.json").write_text(json.dumps(entries))
    script = [on_ranks.__file__, str(model), str(tmp_path / "work.json"), str(tmp_path / "2")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launch, *script], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    for name in recipes:
        assert contents(tmp_path / "2" / name) == contents(tmp_path / "1" / name)
        one, two = (json.loads((tmp_path / n / name / "roundel.json").read_text()) for n in "12")
        assert two["layers"] == one["layers"]
        assert any("saw" in layer["note"] for layer in one["layers"])
        assert len({layer["tokens"] for layer in one["layers"] if ".experts." in layer["name"]}) > 2


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CLOSE)
def test_the_same_but_for_the_order_of_sums(
    name: str, size: int, results: Path, llama: Path, folder_kl
) -> None:
    one, several = (roundel.read_integers(results / n / name) for n in ("1", str(size)))
    equal = sum(int((several[key].codes == weight.codes).sum()) for key, weight in one.items())
    count = sum(weight.codes.numel() for weight in one.values())
    # A code that lies between two others flips, and error feedback carries it on; signs of small gradients flip.
    assert equal > 0.8 * count
    reached = [folder_kl(results / n / name, llama) for n in ("1", str(size))]
    assert reached[1] == pytest.approx(reached[0], rel=0.2)
    told = [json.loads((results / n / name / "roundel.json").read_text()) for n in ("1", str(size))]
    assert [manifest["ranks"] for manifest in told] == [1, size]
    assert [b["name"] for b in told[1]["blocks"]] == [b["name"] for b in told[0]["blocks"]]
    for before, after in zip(told[0]["blocks"], told[1]["blocks"], strict=True):
        for loss in ("loss_start", "loss_end"):
            assert after[loss] == before[loss] or after[loss] == pytest.approx(before[loss], rel=0.1)


def test_nothing_is_left_beside_the_outputs(results: Path) -> None:
    for size in ("1", "2", "4"):
        assert {path.name for path in (results / size).iterdir()} == {*EXACT, *CLOSE, "sweep"}


@pytest.mark.parametrize("size", [2, 4])
def test_a_sweep(size: int, results: Path) -> None:
    for name in ("rtn", "search", "autoround"):
        swept, alone = results / str(size) / "sweep" / name, results / str(size) / name
        if size == 4:
            # On processors with AVX2 and no more, rows of a matrix product depend on how many there are: four ranks
            # share batches of five in a sweep otherwise than alone, and a scale between two others flips.
            assert equal_share(swept, alone) > (0.8 if name == "autoround" else 0.999)
            continue
        found = contents(swept)
        # Gradients are summed in the same order as without a sweep.
        assert found == contents(alone)
        if name in EXACT:
            assert found == contents(results / "1" / name)


def equal_share(one: Path, other: Path) -> float:
    """Of all codes."""
    pairs = [
        (weight.codes, roundel.read_integers(other)[key].codes)
        for key, weight in roundel.read_integers(one).items()
    ]
    return sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def command(llama: Path, out: Path, *more: str, **settings: object) -> list[str]:
    chosen = [f"--set={key}={value}" for key, value in {**TUNING, **settings}.items()]
    return ["quantize", str(llama), "-o", str(out), "--group-size", "32", *chosen, *more]


def in_python(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "roundel", *words]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed the POSIX way")
def test_a_killed_rank_ends_all_and_any_number_goes_on(llama: Path, tmp_path: Path) -> None:
    def run(folder: str) -> list[str]:
        # Long enough to be hit between the first block and the end.
        return command(llama, tmp_path / folder / "out", "--calibration=pydoc", iters=150)

    run_on_ranks(2, tmp_path / "said", processes.command, *run("straight"))
    process = subprocess.Popen(
        in_python([*run("two"), "--nproc", "2"]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "two" / ".out.roundel" / "piece-00000.safetensors").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    ranks = psutil.Process(process.pid).children()
    victim = max(ranks, key=lambda rank: rank.pid)
    victim.kill()
    _, said = process.communicate()
    assert process.returncode == 8
    assert "was killed (SIGKILL), and the others were stopped" in said
    assert not any(rank.is_running() for rank in ranks)
    assert not (tmp_path / "two" / "out").exists()
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    run_on_ranks(2, tmp_path / "said by two", processes.command, *run("two"))
    assert contents(tmp_path / "two" / "out") == contents(tmp_path / "straight" / "out")
    run_on_ranks(1, tmp_path / "said by one", processes.command, *run("one"))
    for who, folder in (("two", "two"), ("one", "one")):
        told = (tmp_path / f"said by {who}" / "rank-0" / "stderr").read_text()
        assert "Going on after 1 finished block" in told
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["out"]


def check_error(said: str, message: str, folder: Path) -> None:
    assert said.count("error:") == 1
    assert message in " ".join(said.split())
    assert not list(folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_an_error_is_said_once(llama: Path, place: Path) -> None:
    run = in_python(command(llama, place / "out", "--calibration", "nowhere.txt", "--nproc", "2"))
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    check_error(done.stderr, "no file nowhere.txt", place)


def test_an_error_of_ranks_is_said_once(llama: Path, place: Path, tmp_path: Path) -> None:
    few = command(llama, place / "out", "--calibration", "pydoc", nsamples=1, holdout=1)
    ranks = start_ranks(2, tmp_path / "said", processes.command, *few)
    assert [rank.wait() for rank in ranks] == [4, 4], [rank.stderr for rank in ranks]
    check_error("".join(rank.stderr for rank in ranks), "1 samples cannot be shared by 2 ranks", place)


def test_no_ranks_at_all_are_an_error(llama: Path, place: Path, tmp_path: Path) -> None:
    run = Started(tmp_path / "said", processes.command, *command(llama, place / "out", "--nproc", "0"))
    assert run.wait() == 2
    check_error(run.stderr, "--nproc 0: 1 process or more is expected", place)


def test_evaluation_is_the_same_to_the_last_digit(
    llama: Path, results: Path, held_out: Path, tmp_path: Path
) -> None:
    words = ["eval", str(results / "1" / "gptq"), "--reference", str(llama), "--text", str(held_out)]
    words += ["--window", "64", "--limit", "9", "--json"]
    run_on_ranks(1, tmp_path, processes.command, *words, tmp_path / "1.json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads change the last bits, ranks do not
    run = in_python([*words, str(tmp_path / "2.json"), "--nproc", "2"])
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    for said in (done.stdout, (tmp_path / "rank-0" / "stdout").read_text()):
        assert said.count("KL to the original") == 1
    assert json.loads((tmp_path / "1.json").read_text()) == json.loads((tmp_path / "2.json").read_text())


def test_every_minibatch_takes_one_sample_of_each_residue() -> None:
    for count, batch, accumulate in ((20, 4, 1), (20, 2, 4), (23, 8, 1), (7, 8, 1), (9, 4, 8)):
        inputs = torch.zeros(count, 2, 3)
        data = BlockData("toy", lambda hidden: hidden, inputs, inputs, torch.device("cpu"))
        options = TuningOptions(batch_size=batch, gradient_accumulate_steps=accumulate, holdout=1)
        trainer = _Trainer(data, {}, {}, options)
        generator = torch.Generator().manual_seed(0)
        size = min(batch, trainer.trained)
        steps = accumulate if size * accumulate <= trainer.trained else 1
        seen = Counter[int]()
        for _ in range(400):
            rows = [row for _ in range(steps) for row in trainer._next_batch(generator)]
            assert sorted(row % (size * steps) for row in rows) == list(range(size * steps))
            seen.update(rows)
        assert set(seen) == set(range(trainer.trained))
        assert max(seen.values()) < 2 * min(seen.values())


def test_shares_of_samples() -> None:
    rows = [7, 2, 4, 9, 0]
    for size in (1, 2, 3):
        ranks = [Ranks(number, size) for number in range(size)]
        assert sorted(row for rank in ranks for row in rank.own(11)) == list(range(11))
        for rank in ranks:
            places, mine = rank.mine(rows)
            own = rank.own(11)
            assert [rows[place] for place in places] == [own[row] for row in mine]
        assert sorted(place for rank in ranks for place in rank.mine(rows)[0]) == [0, 1, 2, 3, 4]


def test_a_file_holds_the_shares_of_all_ranks(tmp_path: Path) -> None:
    whole = torch.randn(5, 2, 3)
    for number in range(2):
        share = FileStream(tmp_path / "x.bin", (5, 2, 3), torch.float32, Ranks(number, 2))
        assert share.shape == (len(whole[number::2]), 2, 3)
        share[0 : share.shape[0]] = whole[number::2]
        assert torch.equal(share[[1, 0]], whole[number::2][[1, 0]])
    home = StreamHome(torch.device("cpu"), tmp_path)
    assert torch.equal(home.find("x", (5, 2, 3))[:], whole)


def test_a_stream_that_is_in_a_file_gets_another_name(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    homes = [StreamHome(torch.device("cpu"), tmp_path / name) for name in ("one", "other")]
    stream = MemoryStream(torch.randn(5, 2, 3))
    for home in homes:
        home.persist("x", stream)
        assert torch.equal(home.find("x", (5, 2, 3))[:], stream.tensor)
    assert (tmp_path / "one" / "x.bin").samefile(tmp_path / "other" / "x.bin")
    homes[0].discard("x")
    assert torch.equal(homes[1].find("x", (5, 2, 3))[:], stream.tensor)


def test_each_rank_of_a_machine_takes_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "empty", lambda *size, device: asked.append(str(device)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("cuda", "xpu", "cuda:3", "cpu"):
        choose_device(name, Ranks(5, 8))
    assert asked == ["cuda:1", "xpu:1", "cuda:3", "cpu"]
    asked.clear()
    choose_device("cuda")
    assert asked == ["cuda"]
    with pytest.raises(RecipeError):
        choose_device("meta", Ranks(0, 2))
