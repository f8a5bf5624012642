"""Files are read by what they hold: suffixes in any case, others by looking inside; what cannot be read is refused."""

import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from roundel.calibration import kinds
from roundel.calibration.sources import Source
from roundel.calibration.texts import Documents, read_documents
from roundel.errors import CalibrationError
from roundel.evaluation.windows import check_text, evaluation_windows
from zoo.prefixes import tokenizer_with
from zoo.texts import lines, parquet, tabular

TEXTS = [f'Lily said "hello" {n}.\nThen she went home.' for n in range(30)]
ROWS = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
LINES = lines(ROWS)
CSV = tabular([["id", "text"], *([str(n), text] for n, text in enumerate(TEXTS))], ",")
PRETTY = json.dumps(ROWS, indent=2)


def read(path: Path, **values: Any) -> Documents:
    return read_documents(Source(str(path)), **values)


@pytest.mark.parametrize("packed", ["", ".gz", ".GZ"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, LINES) for name in ("a.jsonl", "a.ndjson", "a.jsonlines", "a.JSONL", "a.NdJson", "a.JSON")),
        *((name, LINES) for name in ("unnamed", "a.corpus", "a.data.v2", "a.csv", "a.TSV")),
        *((name, PRETTY) for name in ("a.json", "a.Json", "unnamed", "a.corpus", "a.jsonl", "a.NDJSON")),
        *((name, CSV) for name in ("a.csv", "a.CSV")),
        *((name, "".join(json.dumps(text) + "\n" for text in TEXTS)) for name in ("a.jsonl", "a.corpus")),
    ],
)
def test_the_same_rows_under_every_name(name: str, content: str, packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert read(path).documents == TEXTS
    # And to measure on: JSON syntax is no text.
    (tmp_path / "same.jsonl").write_text(LINES)
    check_text(str(path))
    same, found = (
        evaluation_windows(str(p), tokenizer_with("<s> $A"), 32) for p in (tmp_path / "same.jsonl", path)
    )
    assert found.windows.tolist() == same.windows.tolist()


@pytest.mark.parametrize("head", [1 << 7, 1 << 10, 1 << 16])
def test_json_that_is_longer_than_what_is_looked_at(
    head: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_HEAD", head)
    monkeypatch.setattr("roundel.calibration.tables._HEAD", head)
    long = [{"text": "a long text " * 200}, {"text": "[1, 2"}, {"text": "}"}] * 9
    for name, content in (
        ("list", json.dumps(long)),
        ("pretty", json.dumps(long, indent=3)),
        ("lines", lines(long)),
        ("marked", "\ufeff" + lines(long)),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read(tmp_path / name).documents == [row["text"] for row in long]
    (tmp_path / "one").write_text(json.dumps({"text": "x " * 9000}))
    assert read(tmp_path / "one").documents == ["x " * 9000]


def test_parquet_under_another_name(tmp_path: Path) -> None:
    for name in ("a.PARQUET", "a.pq", "unnamed"):
        parquet(ROWS, tmp_path / name)
        assert read(tmp_path / name).documents == TEXTS


PROSE = {
    "a.TXT": "plain",
    "a.txt": LINES,  # as it is called
    "a.md": '{"text": "in Markdown"}',
    "unnamed": "A text.\n",
    "notes": "[1] A footnote.\n[2] Another one.\n",
    "wiki": "{{Infobox}}\nA text.\n",
    "a.quotes": '"Hello," she said.\n"Yes."\n',
    "a.py": '"""A docstring."""\nimport this\n',
    "a.numbers": "1\n2\n3\n",
    "a.braces": "{not JSON}\n{at all}\n",
    "a.brackets": "[a link](https://x)\n",
    "a.half": '{"text": "cut',
    "a.log": "\ufeffa mark in front",
}


@pytest.mark.parametrize("name", PROSE)
def test_text_stays_text(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(PROSE[name], encoding="utf-8")
    found = read(tmp_path / name)
    assert found.documents == [PROSE[name].removeprefix("\ufeff")]
    assert found.plain


def test_bytes_are_refused_whatever_they_are_called(tmp_path: Path) -> None:
    saved = io.BytesIO()
    pickle.dump({"a": list(range(99))}, saved)
    bad = {
        "a.bin": (bytes(range(256)) * 9, "is no utf-8"),
        "unnamed": (b"text\0text", "NUL"),
        "a.png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "begins like a picture"),
        "a.PDF": (b"%PDF-1.4\nall in letters\n", "begins like a PDF document"),
        "a.docx": (b"PK\x03\x04 and so on", "begins like a zip archive or an office document"),
        "a.packed": (gzip.compress(b"text"), r"begins like gzip \(its name should end in .gz\)"),
        "a.pkl": (saved.getvalue(), "is no utf-8"),
    }
    for name, (content, complaint) in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        for reading in (read, lambda p: check_text(str(p))):
            with pytest.raises(CalibrationError, match=rf"{name} cannot be read: .*{complaint}.* expected"):
                reading(path)
    # A name that an encoding makes text of anything changes nothing.
    with pytest.raises(CalibrationError, match="picture"):
        read(tmp_path / "a.png", encoding="latin-1")


def test_a_folder_of_files_without_suffixes(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"part-0000{number}").write_text(lines(ROWS[number * 10 : number * 10 + 10]))
    assert read(tmp_path).documents == TEXTS
    (tmp_path / "README").write_text("What this is.")
    with pytest.raises(CalibrationError, match=r"part-00000, 3 in all\) and others \(README, 1 in all"):
        read(tmp_path)


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    null = {"text": None}
    for rows, said in (
        ([null, *ROWS, null, {"text": ""}, {"text": "  \n"}], "4 rows without text skipped"),
        ([*ROWS, null], "1 row without text skipped"),
        (ROWS, ""),
    ):
        (tmp_path / "a.jsonl").write_text(lines(rows))
        found = read(tmp_path / "a.jsonl")
        assert found.documents == TEXTS
        assert found.summary == "texts of the column text" + (f", {said}" if said else "")
    parquet([{"text": None}, *({"text": text} for text in TEXTS)], tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").summary.endswith("1 row without text skipped")
    (tmp_path / "b.jsonl").write_text(lines([{"body": None}, {"body": "x"}]))
    assert (
        read_documents(Source(f"{tmp_path}/b.jsonl", "body")).summary
        == "the field body, 1 row without text skipped"
    )


def test_lists_of_json_that_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read bit by bit they are refused as those are that are read at once."""
    whole = '[{"text": "one"}, {"text": "two"}]'
    for broken in ('["a" "b"]', whole[:-1], whole[:-4], whole + "x", whole.replace(", ", " "),
                   whole.replace(", ", ",, "),
                   whole.replace("]", ",]"), '[{"text": "a\0"}]'):  # fmt: skip
        (tmp_path / "a.json").write_text(broken)
        for head in (1 << 20, 1):
            monkeypatch.setattr("roundel.calibration.tables._HEAD", head)
            with pytest.raises(CalibrationError, match=r"a\.json cannot be read: .* expected"):
                read(tmp_path / "a.json")
