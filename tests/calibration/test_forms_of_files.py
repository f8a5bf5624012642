"""People's data as they have them: the same documents in every form of file give the same calibration tokens."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from calibration.gathered import ROWS, TEXTS, gather
from roundel.errors import CalibrationError
from zoo.texts import arrow, lines, parquet, tabular

WRITTEN: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
    "a.ndjson": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
    "a.JSONL": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
    "lines.json": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
    "strings.json": lambda p: p.write_text(json.dumps(TEXTS), encoding="utf-8"),
    "a.csv": lambda p: p.write_bytes(tabular([["id", "text"], *(["1", t] for t in TEXTS)], ",").encode()),
    "semicolons.csv": lambda p: p.write_bytes(tabular([["id", "text"], *(["1", t] for t in TEXTS)], ";").encode()),
    "a.tsv": lambda p: p.write_bytes(tabular([["id", "text"], *(["1", t] for t in TEXTS)], "\t").encode()),
    "marked.csv": lambda p: p.write_bytes(tabular([["text"], *([t] for t in TEXTS)], ",").encode("utf-8-sig")),
    "utf16.jsonl": lambda p: p.write_bytes(lines(ROWS).encode("utf-16")),
    "utf32.csv": lambda p: p.write_bytes(tabular([["text"], *([t] for t in TEXTS)], ",").encode("utf-32")),
    "a.parquet": lambda p: parquet(ROWS, p),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress(lines(ROWS).encode())),
    "a.jsonl.bz2": lambda p: p.write_bytes(bz2.compress(lines(ROWS).encode())),
    "a.csv.xz": lambda p: p.write_bytes(lzma.compress(tabular([["text"], *([t] for t in TEXTS)], ",").encode())),
    "saved": lambda p: arrow(ROWS, p),
    "folder": lambda p: (p.mkdir(), [(p / f"{n:02}.txt").write_text(t, encoding="utf-8") for n, t in enumerate(TEXTS)]),
    "shards": lambda p: (p.mkdir(), (p / "0.jsonl").write_text(lines(ROWS[:9]), encoding="utf-8"),
                         (p / "1.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[9:]).encode()))),
}  # fmt: skip


@pytest.fixture(scope="module")
def wanted() -> torch.Tensor:
    return gather(TEXTS).tokens


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_texts_in_every_file_give_the_same_tokens(
    name: str, wanted: torch.Tensor, tmp_path: Path
) -> None:
    WRITTEN[name](tmp_path / name)
    assert torch.equal(gather(str(tmp_path / name)).tokens, wanted)
    assert torch.equal(gather(tmp_path / name).tokens, wanted)


def test_zstd_of_one_frame_and_of_several(wanted: torch.Tensor, tmp_path: Path) -> None:
    """The Pile's shards have many."""
    import pyarrow

    codec, content = pyarrow.Codec("zstd"), lines(ROWS).encode()
    for name, cuts in (("one", [content]), ("several", [content[:99], content[99:700], content[700:]])):
        path = tmp_path / f"{name}.jsonl.zst"
        path.write_bytes(b"".join(codec.compress(cut, asbytes=True) for cut in cuts))
        assert torch.equal(gather(str(path)).tokens, wanted)


def test_a_table_in_memory(wanted: torch.Tensor) -> None:
    import datasets
    import pandas

    assert torch.equal(gather(pandas.DataFrame(ROWS)).tokens, wanted)
    assert torch.equal(gather(datasets.Dataset.from_list(ROWS)).tokens, wanted)
    with pytest.raises(CalibrationError, match="a mapping with the keys train"):
        gather(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-8"])
def test_other_encodings_by_name(encoding: str, tmp_path: Path) -> None:
    texts = ["Un café naïf. " * 9] * 30
    for name, content in (("a.txt", "\n".join(texts)), ("a.jsonl", lines([{"text": t} for t in texts]))):
        (tmp_path / name).write_bytes(content.encode(encoding))
        (tmp_path / f"utf8-{name}").write_text(content, encoding="utf-8")
        same = gather(str(tmp_path / f"utf8-{name}"))
        found = gather(str(tmp_path / name), encoding=encoding)
        assert found.fingerprint == same.fingerprint
        assert f"read as {encoding}" in found.source
        marked = tmp_path / f"marked-{name}"
        marked.write_bytes(content.encode("utf-16"))
        assert gather(str(marked), encoding=encoding).fingerprint == same.fingerprint
