"""Of a place that holds more than is needed a portion is kept: spread over all of it, or its beginning."""

import gzip
import json
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundel.calibration import portion as portions
from roundel.calibration.gather import Calibration, gather_calibration
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.portion import Need, Portion
from roundel.calibration.sources import Source
from roundel.calibration.texts import read_documents
from roundel.evaluation.windows import evaluation_windows
from roundel.system.progress import Progress
from zoo.prefixes import tokenizer_with
from zoo.texts import Model, arrow, lines, parquet, tabular

# Long enough to be told apart wherever they are cut.
ROWS = [{"text": f"<{n}> " + f"word{n} and more of it. " * (3 + n % 5)} for n in range(3000)]
PLAIN = "\n".join(f"line {n} of a long text, told by its number {n}." for n in range(20_000))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some hundred kilobytes are large here."""
    monkeypatch.setattr(portions, "_ROWS", 1 << 14)
    monkeypatch.setattr(portions, "_RUNNING", 1 << 14)
    monkeypatch.setattr(portions, "_BEGINNING", 1 << 14)


def gather(path: Path, **values: Any) -> Calibration:
    options = CalibrationOptions(**{"nsamples": 8, "seqlen": 64, **values})
    return gather_calibration(str(path), Model(), tokenizer_with("<s> $A"), options, Progress())


def words(rows: torch.Tensor) -> str:
    return str(tokenizer_with("<s> $A").decode(rows.flatten()))


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=400),
    most=st.integers(1, 3000),
    seed=st.integers(0, 99),
)
def test_what_is_kept_is_spread_evenly(sizes: list[int], most: int, seed: int) -> None:
    portion: Portion[int] = Portion(most, seed)
    for number, size in enumerate(sizes):
        if portion.wants():
            portion.add(number, size)
    kept, stride = portion.items, portion.stride
    # One of every `stride` items, none of them favoured, and no more of them than are allowed.
    assert all(1 <= after - before <= 2 * stride - 1 for before, after in pairwise(kept))
    assert [number // stride for number in kept] == sorted({number // stride for number in kept})
    assert len(kept) >= len(sizes) // stride
    assert sum(sizes[number] for number in kept) <= most or len(kept) == 1
    assert portion.held <= most + 100
    if sum(sizes) <= most:
        assert kept == list(range(len(sizes)))
        assert not portion.partly


def test_the_seed_says_which_places() -> None:
    found = set()
    for seed in range(40):
        portion: Portion[int] = Portion(100, seed)
        for number in range(800):
            if portion.wants():
                portion.add(number, 1)
        found.add(portion.items[0])
    assert len(found) > 5


WRITTEN: dict[str, Any] = {
    "a.jsonl": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
    "a.JSONLINES": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
    "lines.json": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
    "list.json": lambda p: p.write_text(json.dumps([row["text"] for row in ROWS], indent=1), encoding="utf-8"),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress(lines(ROWS).encode())),
    "utf16.jsonl": lambda p: p.write_bytes(lines(ROWS).encode("utf-16")),
    "a.CSV": lambda p: p.write_bytes(tabular([["text"], *([row["text"]] for row in ROWS)], ",").encode()),
    "a.parquet": lambda p: parquet(ROWS, p),
    "saved": lambda p: arrow(ROWS, p),
    "shards": lambda p: (p.mkdir(), (p / "0.jsonl").write_text(lines(ROWS[:900])),
                         (p / "1.jsonl").write_text(lines(ROWS[900:]))),
    "unnamed": lambda p: p.write_text(lines(ROWS), encoding="utf-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_come_from_all_over_a_large_file(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("roundel.calibration.tables._HEAD", 1 << 12)
    WRITTEN[name](tmp_path / name)
    found = gather(tmp_path / name)
    (tmp_path / "expected.jsonl").write_text(lines(ROWS), encoding="utf-8")
    assert torch.equal(found.tokens, gather(tmp_path / "expected.jsonl").tokens)
    kept, stride = map(
        int, re.findall(r"(\d+) rows spread evenly over it, one of every (\d+)", found.source)[0]
    )
    assert 3000 // stride - 1 <= kept <= 3000 // stride + 1
    places = [int(number) for number in re.findall(r"<(\d+)>", words(found.tokens))]
    assert min(places) < 1000
    assert max(places) > 2000
    assert len(places) > 5


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", "", "-16.TXT"])
def test_passages_come_from_all_over_a_large_text(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = PLAIN.encode("utf-16" if "16" in suffix else "utf-8")
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found = gather(path)
    assert re.search(r"text.*, \d+ passages spread evenly over it, one of every \d+, 8 samples", found.source)
    places = [int(number) for number in re.findall(r"line (\d+) of", words(found.tokens))]
    assert min(places) < 7000
    assert max(places) > 13_000
    # Passages begin with a line, and a lot of lines are whole.
    lines_seen = re.findall(r"line (\d+) of a long text, told by its number (\d+)\.", words(found.tokens))
    assert sum(number == again for number, again in lines_seen) > 5
    (tmp_path / "same.txt").write_text(PLAIN, encoding="utf-8")
    assert found.fingerprint == gather(tmp_path / "same.txt").fingerprint
    assert found.fingerprint != gather(path, seed=1).fingerprint


def test_where_everything_is_needed_nothing_changes(tmp_path: Path, monkeypatch) -> None:
    """As many rows as there are: the same as of documents in memory."""
    (tmp_path / "a.jsonl").write_text(lines(ROWS), encoding="utf-8")
    (tmp_path / "a.txt").write_text(PLAIN, encoding="utf-8")
    tokenizer = tokenizer_with("<s> $A")
    for name, documents in (("a.jsonl", [row["text"] for row in ROWS]), ("a.txt", [PLAIN])):
        tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in documents)
        count = tokens // 63
        options = CalibrationOptions(nsamples=count, seqlen=64)
        whole = gather_calibration(documents, Model(), tokenizer, options, Progress())
        assert gather(tmp_path / name, nsamples=count).fingerprint == whole.fingerprint


def test_more_is_read_where_tokens_are_long(tmp_path: Path) -> None:
    """Blanks by the hundred are a token or two: what is usually enough is not."""
    long = [{"text": " " * 600 + f"word{n}"} for n in range(4000)]
    (tmp_path / "a.jsonl").write_text(lines(long), encoding="utf-8")
    assert gather(tmp_path / "a.jsonl", nsamples=40).tokens.shape == (40, 64)


def test_the_beginning_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS), encoding="utf-8")
    (tmp_path / "a.txt").write_text(PLAIN, encoding="utf-8")
    tokenizer = tokenizer_with("<s> $A")
    for name, documents in (("a.jsonl", [row["text"] for row in ROWS]), ("a.txt", [PLAIN])):
        found = gather(tmp_path / name, shuffle=False)
        options = CalibrationOptions(nsamples=8, seqlen=64, shuffle=False)
        whole = gather_calibration(documents, Model(), tokenizer, options, Progress())
        assert found.fingerprint == whole.fingerprint
        assert "from the beginning" in found.source


@pytest.mark.parametrize("window", [64, 512])
@pytest.mark.parametrize("add_bos", [None, False])
def test_the_first_windows_of_a_large_text_are_those_of_the_whole(
    add_bos: bool | None, window: int, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS), encoding="utf-8")
    (tmp_path / "a.txt").write_text(PLAIN, encoding="utf-8")
    tokenizer = tokenizer_with("<s> $A </s>")
    for name, said in (("a.jsonl", "from the beginning"), ("a.txt", "a.txt, from its beginning")):
        whole = evaluation_windows(str(tmp_path / name), tokenizer, window, add_bos=add_bos)
        some = evaluation_windows(str(tmp_path / name), tokenizer, window, 5, add_bos=add_bos)
        assert torch.equal(some.windows, whole.windows[:5])
        assert said in some.convention
        assert said not in whole.convention


def test_the_first_windows_where_tokens_are_long(tmp_path: Path) -> None:
    """Of blanks by the hundred, a piece that is usually enough gives a few tokens: more pieces are tokenized."""
    (tmp_path / "a.txt").write_text("".join(" " * 600 + f"word{n}" for n in range(800)), encoding="utf-8")
    tokenizer = tokenizer_with("<s> $A")
    whole = evaluation_windows(str(tmp_path / "a.txt"), tokenizer, 64)
    some = evaluation_windows(str(tmp_path / "a.txt"), tokenizer, 64, 40)
    assert len(whole.windows) > 40
    assert torch.equal(some.windows, whole.windows[:40])


def test_memory_is_that_of_what_is_needed(tmp_path: Path) -> None:
    """Python's own memory: a fraction of the file's size, for rows and for text, packed or not."""
    count = 400
    (tmp_path / "a.jsonl").write_text(lines(ROWS * count)[: 1 << 24].rpartition("\n")[0], encoding="utf-8")
    (tmp_path / "a.txt").write_text((PLAIN * count)[: 1 << 24], encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((PLAIN * count)[: 1 << 24].encode(), 1))
    for name in ("a.jsonl", "a.txt", "a.txt.gz"):
        for seed in (1, None):
            tracemalloc.start()
            found = read_documents(Source(str(tmp_path / name)), None, Need(tokens=2048, row=128, seed=seed))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 1 << 20
            assert found.partly
            assert found.held < 1 << 16


def test_token_ids_are_taken_in_their_order(tmp_path: Path) -> None:
    ids = [[n] * 64 for n in range(2000)]
    (tmp_path / "a.jsonl").write_text(lines(ids), encoding="utf-8")
    assert gather(tmp_path / "a.jsonl").tokens.tolist() == ids[:8]


def test_one_row_that_is_larger_than_all_that_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([{"text": PLAIN}, *ROWS[:50]]), encoding="utf-8")
    for seed in range(4):
        assert gather(tmp_path / "a.jsonl", seed=seed).tokens.shape == (8, 64)
