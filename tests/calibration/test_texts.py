import json
from pathlib import Path

import pytest
import torch

from roundel.calibration.forms import Chat, Document
from roundel.calibration.rows import as_document
from roundel.calibration.sources import parse_sources
from roundel.calibration.texts import read_documents
from roundel.errors import CalibrationError

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


def read(source: str) -> list[Document]:
    """The documents that a text names."""
    (place,) = parse_sources(source)
    return read_documents(place).documents


def test_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = ["one", "two ü"]
    (tmp_path / "a.txt").write_text("one\ntwo ü", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(texts), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"text": "alone"}), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"content": texts}), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.txt")) == ["one\ntwo ü"]
    assert read(str(tmp_path / "a.json")) == texts
    assert read(str(tmp_path / "b.json")) == ["alone"]
    assert read(str(tmp_path / "a.jsonl")) == texts
    assert read(str(tmp_path / "a.parquet")) == texts


def test_token_ids_that_torch_saved(tmp_path: Path) -> None:
    """As SpQR's and GPTQ's releases save them: a list of `[1, S]`."""
    torch.save([torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])], tmp_path / "list.pt")
    torch.save(torch.tensor([[1, 2, 3], [4, 5, 6]]), tmp_path / "matrix.pt")
    for name in ("list.pt", "matrix.pt"):
        assert read(str(tmp_path / name)) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("saved", [torch.rand(2, 3), [torch.ones(2, 2, dtype=torch.int64)], {"a": 1}, print])
def test_other_things_that_torch_saved(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "bad.pt")
    with pytest.raises(CalibrationError, match=r"bad\.pt cannot be read"):
        read(str(tmp_path / "bad.pt"))


def test_kinds_of_rows() -> None:
    assert as_document("text", "row") == "text"
    assert as_document([1, 2], "row") == [1, 2]
    assert as_document({"input_ids": [3], "attention_mask": [1]}, "row") == [3]
    assert as_document({"messages": CHAT}, "row") == Chat(CHAT) == as_document(CHAT, "row")
    with pytest.raises(CalibrationError, match=r"row 7 has the columns titel.*input_ids, messages, .*text"):
        as_document({"titel": "x"}, "row 7")
    with pytest.raises(CalibrationError, match="row is 3"):
        as_document(3, "row")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", b"", "no text in"),
        ("blank.jsonl", b'{"text": "  "}\n', "no text in"),
        ("broken.json", b"{", "cannot be read"),
        ("latin.txt", b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_files_without_text(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=complaint):
        read(str(tmp_path / name))


@pytest.mark.parametrize("source", ["nowhere.txt", "./nowhere", "missing.parquet", "~/nothing.jsonl"])
def test_a_missing_file_is_not_looked_up_on_a_hub(source: str) -> None:
    with pytest.raises(CalibrationError, match="no file"):
        read(source)


def test_a_data_set_that_cannot_be_reached() -> None:
    with pytest.raises(CalibrationError, match=r"pile-10k cannot be loaded.*pydoc"):
        read("pile-10k")


def test_pydoc_is_english_on_every_machine() -> None:
    documents = read("pydoc")
    assert sum(map(len, documents)) > 200_000
    assert "statement" in " ".join(documents)
