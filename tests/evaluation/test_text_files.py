"""Local copies of the papers' data sets, and a perplexity in a few lines that knows nothing of ours."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import roundel
from roundel.errors import CalibrationError
from roundel.evaluation.windows import check_text, evaluation_windows

WIKI = " \n = A heading = \n \n Some text of an article . \n \n More of it , in a second line . \n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "wiki.test.raw").write_text(WIKI * 40, encoding="utf-8")
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "ptb.valid.txt").write_text(" a sentence of the validation split \n" * 99)
    (tmp_path / "ptb.test.txt").write_text(" a sentence of the test split \n" * 99)
    lines = [json.dumps({"text": f"document {i} " * (3 + i % 60)}) for i in range(300)]
    (tmp_path / "c4").mkdir()
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "c4" / "c4-validation.00000-of-00008.json.gz").write_bytes(packed)
    return tmp_path


def test_rows_are_those_of_the_hub(data: Path, llama: Path, load_model) -> None:
    _, tokenizer = load_model(llama)

    def tokens(text: str) -> list[int]:
        return tokenizer(text, verbose=False)["input_ids"]

    rows = [
        "",
        " = A heading = \n",
        "",
        " Some text of an article . \n",
        "",
        " More of it , in a second line . \n",
    ]
    c4 = " ".join(f"document {i} " * (3 + i % 60) for i in range(300))
    wanted = {
        "wikitext2": "\n\n".join(rows * 40),
        "ptb": "\n\n".join(["a sentence of the validation split"] * 99),
        "ptb_new": " ".join(["a sentence of the test split"] * 99),
        "c4_new": c4,
    }
    for name, text in wanted.items():
        found = evaluation_windows(name, tokenizer, 64, data_dir=data)
        ids = tokens(text)[: found.windows.numel()]
        assert found.windows.flatten().tolist() == ids, name
        assert len(found.windows) == min(len(tokens(text)) // 64, 256)
    assert evaluation_windows("c4", tokenizer, 64, data_dir=data).windows.shape == (256, 64)


def test_documents_of_a_local_file(tmp_path: Path, llama: Path, load_model) -> None:
    _, tokenizer = load_model(llama)
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"document {i} of several"}) for i in range(30)))
    found = evaluation_windows(str(path), tokenizer, 32)
    text = " ".join(f"document {i} of several" for i in range(30))
    assert found.windows.flatten().tolist() == tokenizer(text)["input_ids"][: found.windows.numel()]
    assert found.convention.startswith(
        "some.jsonl: texts of the column text, 30 documents joined by blanks, one tokenizer call"
    )
    path.write_text(json.dumps({"input_ids": [1, 2, 3]}))
    with pytest.raises(CalibrationError, match="documents of text are expected"):
        evaluation_windows(str(path), tokenizer, 32)


def test_what_is_not_there_or_too_short(
    data: Path, llama: Path, load_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer = load_model(llama)
    with pytest.raises(CalibrationError, match=r"no wikitext2 in .*wiki.test.raw, there or in wikitext2/"):
        evaluation_windows("wikitext2", tokenizer, 64, data_dir=data / "c4")
    monkeypatch.setattr("roundel.evaluation.windows._PATIENCE", 200)
    with pytest.raises(CalibrationError, match="none of 201 documents of c4 is longer than 512 tokens"):
        evaluation_windows("c4", tokenizer, 512, data_dir=data)
    (data / "c4" / "c4-validation.00000-of-00008.json").write_text('{"words": "none"}\n')
    with pytest.raises(CalibrationError, match="the file as it was published is expected"):
        evaluation_windows("c4_new", tokenizer, 64, data_dir=data)


def oracle(model: torch.nn.Module, ids: list[int], window: int, limit: int) -> float:
    """Perplexity as the papers' scripts compute it."""
    losses = []
    for start in range(0, min(limit, len(ids) // window) * window, window):
        row = torch.tensor([ids[start : start + window]])
        with torch.no_grad():
            logits = model(row).logits
        losses.append(F.cross_entropy(logits[0, :-1].float(), row[0, 1:]).double())
    return math.exp(torch.stack(losses).mean())


def test_wikitext2_as_the_papers_compute_it(tinystories: Path, shared_data: Path, load_model) -> None:
    model, tokenizer = load_model(tinystories)
    raw = shared_data / "wikitext2" / "wiki.test.raw"
    lines = raw.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [line + "\n" if line.strip() else "" for line in lines]
    assert len(rows) == 4358
    ids = tokenizer("\n\n".join(rows), verbose=False)["input_ids"]
    windows = evaluation_windows("wikitext2", tokenizer, 256, data_dir=shared_data).windows
    assert windows.flatten().tolist() == ids[: len(ids) // 256 * 256]
    # From the beginning, as many as take a second.
    found = roundel.evaluate(
        tinystories, text="wikitext2", data_dir=shared_data, window=256, limit=100
    ).texts[0]
    assert found.windows == 100
    assert found.perplexity.value == pytest.approx(oracle(model, ids, 256, 100), abs=1e-4)


def test_perplexity_of_a_small_copy(data: Path, llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    text = evaluation_windows("wikitext2", tokenizer, 64, data_dir=data)
    found = roundel.evaluate(llama, text="wikitext2", data_dir=data, window=64).texts[0]
    wanted = oracle(model, text.windows.flatten().tolist(), 64, 10**6)
    assert found.perplexity.value == pytest.approx(wanted, abs=1e-4)


def test_local_texts_are_read_as_calibration_data_are(tmp_path: Path, llama: Path, load_model) -> None:
    _, tokenizer = load_model(llama)
    texts = [f"document {i} of séveral, with commas" for i in range(30)]
    wanted = tokenizer(" ".join(texts))["input_ids"]
    table = "id,body\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts))
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    (tmp_path / "old.csv.gz").write_bytes(gzip.compress(table.encode("latin-1")))
    for name, encoding in (("a.csv", None), ("old.csv.gz", "latin-1")):
        found = evaluation_windows(f"{tmp_path}/{name}:body", tokenizer, 32, encoding=encoding)
        assert found.windows.flatten().tolist() == wanted[: found.windows.numel()]
        assert found.convention.startswith(f"{name}: the field body")
    with pytest.raises(CalibrationError, match="the columns id, body"):
        check_text(str(tmp_path / "a.csv"))


def test_chats_are_measured_through_the_template(tmp_path: Path, llama: Path, load_model) -> None:
    _, tokenizer = load_model(llama)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    rows = [{"conversations": [{"from": "human", "value": f"What is {i}?"}]} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = evaluation_windows(str(tmp_path / "a.jsonl"), tokenizer, 32)
    wanted = tokenizer(" ".join(f"<user>What is {i}?" for i in range(30)))["input_ids"]
    assert found.windows.flatten().tolist() == wanted[: found.windows.numel()]
    assert "through the model's chat template" in found.convention
