"""Several models against one original: figures, what is noise, and which layer is broken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import roundel
from roundel.cli.app import main
from roundel.errors import ModelError, RecipeError
from roundel.evaluation.measure import Measured
from roundel.evaluation.pairs import answers_verdict, compare_pairs, holm, sign_test, verdict
from zoo import zoo_model

pytestmark = pytest.mark.slow("quantizes models and compares them")

DAMAGED = "model.layers.1.mlp.down_proj"
MEASURED = {"window": 64, "limit": 12}


@pytest.fixture(scope="module")
def folders(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """RTN at 3 bits and at 4, and the latter with one layer's scales doubled after it was written."""
    base = tmp_path_factory.mktemp("compared")
    for bits in (3, 4):
        recipe = roundel.Recipe(method="rtn", bits=bits, group_size=32)
        roundel.quantize(llama, recipe, output=base / f"w{bits}", held_out=None)
    shutil.copytree(base / "w4", base / "damaged")
    file = base / "damaged" / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{DAMAGED}.weight_scale"] *= 2
    save_file(tensors, file, {"format": "pt"})
    return {name: base / name for name in ("w3", "w4", "damaged")}


@pytest.fixture(scope="module")
def compared(folders: dict[str, Path], llama: Path, held_out: Path) -> dict:
    return roundel.compare(list(folders.values()), llama, text=str(held_out), **MEASURED)


def test_figures_are_those_of_single_evaluations(
    compared: dict, folders: dict[str, Path], llama: Path, held_out: Path
) -> None:
    for model in compared["models"]:
        alone = roundel.evaluate(folders[model["name"]], reference=llama, text=str(held_out), **MEASURED)
        assert model["quality"]["texts"] == alone.plain()["texts"]
        written = sum(file.stat().st_size for file in folders[model["name"]].glob("*.safetensors"))
        assert model["file_bytes"] == written
        assert model["bits_per_parameter"] == 8 * written / compared["reference"]["parameters"]
    original = roundel.evaluate(llama, text=str(held_out), **MEASURED)
    assert compared["reference"]["quality"]["texts"] == original.plain()["texts"]
    assert json.loads(json.dumps(compared)) == compared


def test_the_broken_layer_is_named(compared: dict) -> None:
    found = {model["name"]: model["standouts"] for model in compared["models"]}
    assert found["w3"] == found["w4"] == []
    assert [layer["name"] for layer in found["damaged"]] == [DAMAGED]
    assert any(f"damaged: {DAMAGED}: error" in sentence for sentence in compared["verdict"])


def test_errors_are_those_of_the_run(compared: dict, folders: dict[str, Path]) -> None:
    for model in compared["models"][:2]:
        manifest = json.loads((folders[model["name"]] / "roundel.json").read_text())
        wanted = {layer["name"]: layer["error"] for layer in manifest["layers"] if layer["bits"]}
        found = {layer["name"]: layer["error"] for layer in model["layers"]}
        assert found == pytest.approx(wanted, rel=0.02)  # in the model's type, not in fp32


def test_differences_are_paired(compared: dict) -> None:
    pairs = {(p["a"], p["b"], p["figure"]): p for p in compared["pairs"]}
    assert len(pairs) == 6
    kl = pairs["w3", "w4", "kl"]
    by_name = {m["name"]: m["quality"]["texts"][0]["kl"]["mean"]["value"] for m in compared["models"]}
    assert kl["difference"]["value"] == pytest.approx(by_name["w3"] - by_name["w4"])
    assert not kl["noise"]
    assert compared["verdict"][0].startswith("On manual.txt, w4 is closest to the original: KL")


def measured(losses: torch.Tensor) -> Measured:
    return Measured(losses[:, :1].expand(-1, 7), losses[:, :1].expand(-1, 7), losses, torch.ones_like(losses))


def test_what_is_noise() -> None:
    generator = torch.Generator().manual_seed(4)
    hard = torch.rand(20, 1, generator=generator, dtype=torch.float64)

    def noisy(shift: float, width: float) -> Measured:
        rows = torch.randn(20, 8, generator=generator, dtype=torch.float64)
        return measured(hard + shift + width * rows)

    models = {"a": noisy(0.0, 0.001), "b": noisy(0.0, 0.001), "c": noisy(0.01, 0.001)}
    pairs = compare_pairs("text", models)
    noise = {(p.a, p.b): p.noise for p in pairs if p.figure == "kl"}
    assert noise == {("a", "b"): True, ("a", "c"): False, ("b", "c"): False}
    kl = {name: float(found.kl.mean()) for name, found in models.items()}
    said = verdict(list(models), kl, pairs, "text")
    assert "cannot be told apart by these windows" in said[1]
    assert "is closer than c" in said[2]
    single = compare_pairs("text", {name: measured(hard[:1].expand(1, 8)) for name in "ab"})
    assert all(pair.noise for pair in single)


def test_changed_answers() -> None:
    from math import comb

    for lost, won in ((0, 0), (3, 3), (9, 12), (1, 9), (40, 12)):
        # All outcomes of fair coins that are no likelier than this one.
        count = lost + won
        ways = [comb(count, k) for k in range(count + 1)]
        wanted = sum(way for way in ways if way <= ways[lost]) / 2**count
        assert sign_test(lost, won) == pytest.approx(wanted)
    tasks = [
        {"task": "one", "flips": {"lost": 9, "won": 12}},
        {"task": "two", "flips": {"lost": 40, "won": 12}},
        {"task": "three", "flips": None},
        {"task": "part", "part_of": "two", "flips": {"lost": 40, "won": 12}},
    ]
    said = answers_verdict({"small": tasks})
    assert said[0] == (
        "On two, small loses 40 of the original's right answers and wins 12: a real difference (p = 0.00026, "
        "corrected for 2 comparisons)."
    )
    assert said[1] == "small's changed answers are noise on one (lost 9, won 12)."
    assert len(said) == 2
    (alone,) = answers_verdict({"small": tasks[1:2]})
    assert alone.endswith("a real difference (p = 0.00013).")


@pytest.fixture(scope="module")
def piqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six documents of a task, in a folder of data sets."""
    data = tmp_path_factory.mktemp("data")
    row = '{"goal": "read it", "sol1": "The statement is executed when %d", "sol2": "apples"}\n'
    (data / "piqa").mkdir()
    (data / "piqa" / "dev.jsonl").write_text("".join(row % number for number in range(6)))
    (data / "piqa" / "dev-labels.lst").write_text("0\n" * 6)
    return data


def test_tasks_want_every_model_in_memory(folders: dict[str, Path], llama: Path, piqa: Path) -> None:
    """The original may be, and a model that is compared with it not."""
    original, tokenizer = roundel.load(llama)
    with pytest.raises(ModelError, match=r"is read block by block: pass --whole"):
        roundel.compare(
            list(folders.values())[:1],
            original,
            tokenizer=tokenizer,
            text=[],
            tasks=["piqa"],
            data_dir=piqa,
            block_by_block=True,
        )


def test_tasks_alone(
    folders: dict[str, Path], llama: Path, piqa: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Without a text: scores and changed answers, in the table and on the page."""
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    command = ["compare", *folders.values(), "--reference", llama, "--tasks", "piqa", "--data-dir", piqa]
    monkeypatch.setattr("sys.argv", ["roundel", *map(str, command), "-o", str(page), "--json", str(figures)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err
    printed = " ".join(capsys.readouterr().out.split())
    assert "piqa, acc_norm, 6 documents" in printed
    assert "'s changed answers are noise on piqa (lost" in printed
    found = json.loads(figures.read_text())
    for model in found["models"]:
        (task,) = model["quality"]["tasks"]
        flips = task["flips"]
        assert f"lost {flips['lost']}, won {flips['won']}" in page.read_text()
        assert task["value"] == pytest.approx(task["reference"]["value"] + (flips["won"] - flips["lost"]) / 6)
    assert "No text was measured." in page.read_text()


def test_many_comparisons_have_no_false_alarm() -> None:
    """What one test alone would call real, several do not; by a worked example and by drawing noise."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    one, luck = {"task": "t", "flips": {"lost": 20, "won": 39}}, {"task": "u", "flips": {"lost": 9, "won": 9}}
    assert "real" in answers_verdict({"a": [one]})[0]
    assert not any("real" in words for words in answers_verdict({name: [one, luck] for name in "abc"}))
    draw = torch.Generator().manual_seed(0)
    alone = corrected = 0
    for _ in range(2000):
        chances = [sign_test(40 - w, w) for w in torch.randint(2, (20, 40), generator=draw).sum(1).tolist()]
        alone += min(chances) <= 0.05
        corrected += min(holm(chances)) <= 0.05
    assert alone > 0.4 * 2000
    assert corrected < 0.06 * 2000


def test_the_command(folders: dict[str, Path], llama: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["roundel", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    page = tmp_path / "page.html"
    command = [
        "compare",
        *folders.values(),
        "--reference",
        llama,
        "--text",
        "pydoc",
        "--window",
        64,
        "--limit",
        3,
    ]
    command += ["--page", page, "--json", tmp_path / "page.json"]
    assert run(*command) == 0
    said = capsys.readouterr().out
    for words in ("bits per parameter", "KL to original", "closest to the original", DAMAGED, "The page:"):
        assert words in " ".join(said.split())
    assert "closest to the original" in page.read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "page.json").read_text())["models"]) == 3
    assert run(*command) == 6
    assert "pass --overwrite" in " ".join(capsys.readouterr().err.split())
    assert run(*command, "--overwrite") == 0


def test_names_tell_models_apart(llama: Path, held_out: Path, tmp_path: Path) -> None:
    for parent in ("one", "two"):
        shutil.copytree(llama, tmp_path / parent / "model")
    models = [tmp_path / parent / "model" for parent in ("one", "two")]
    found = roundel.compare(models, llama, text=str(held_out), window=64, limit=2)
    assert [model["name"] for model in found["models"]] == ["one/model", "two/model"]
    assert [model["description"] for model in found["models"]] == ["float32"] * 2
    assert all(layer["error"] == 0 for model in found["models"] for layer in model["layers"])
    assert all(pair["noise"] for pair in found["pairs"])
    with pytest.raises(RecipeError, match="is given twice"):
        roundel.compare([llama, llama], llama, text=str(held_out), **MEASURED)


@pytest.mark.parametrize("format", ["compressed-tensors", "roundel", "dense"])
def test_experts_and_blocks_on_disk(format: str, held_out: Path, tmp_path: Path) -> None:
    model = zoo_model("qwen3_moe")
    recipe = roundel.Recipe(method="rtn", group_size=32, sym=True, format=format)
    roundel.quantize(model, recipe, output=tmp_path / "out", held_out=None)
    by_blocks = format != "compressed-tensors"  # whose packed experts are opened whole
    found = roundel.compare(
        [tmp_path / "out"], model, text=str(held_out), window=64, limit=2, block_by_block=by_blocks
    )
    errors = {layer["name"]: layer["error"] for layer in found["models"][0]["layers"]}
    manifest = json.loads((tmp_path / "out" / "roundel.json").read_text())
    wanted = {layer["name"]: layer["error"] for layer in manifest["layers"] if layer["bits"]}
    assert {name: errors[name] for name in wanted} == pytest.approx(wanted, rel=0.02)
    assert found["models"][0]["standouts"] == []


def test_scales_that_went_into_a_norm_are_no_error(llama: Path, held_out: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(
        method="rtn", bits=8, group_size=32, act_bits=8, smooth=0.5, nsamples=8, seqlen=64, format="dense"
    )
    roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out", held_out=None)
    found = roundel.compare([tmp_path / "out"], llama, text=str(held_out), window=64, limit=2)
    errors = {layer["name"].rpartition(".")[2]: layer["error"] for layer in found["models"][0]["layers"]}
    assert errors["q_proj"] is None
    assert errors["o_proj"] < 1e-3


def test_a_large_vocabulary_is_kept_in_part(llama: Path, held_out: Path, monkeypatch) -> None:
    from roundel.workflows import compare as comparing

    monkeypatch.setattr(comparing, "_KEPT_BYTES", 1000)
    monkeypatch.setattr(comparing, "_LIKELIEST", 20)
    told: list[str] = []

    class Listener(roundel.Progress):
        def say(self, text: str) -> None:
            told.append(text)

    roundel.compare([llama], llama, text=str(held_out), window=64, limit=2, progress=Listener())
    assert told == [
        "KL is counted over the original's 20 likeliest tokens and the rest: its whole predictions of 128 tokens would "
        "be too many to keep (--top-k decides)"
    ]
