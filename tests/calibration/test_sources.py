"""What the name of a source says: fields, numbers of samples, several sources, folders and patterns."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.gathered import ROWS, TEXTS, documents, gather, options
from roundel.calibration.gather import for_sources
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.sources import Source, parse_sources, share_samples
from roundel.errors import CalibrationError
from zoo.texts import lines


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("a.jsonl", [Source("a.jsonl")]),
        ("a.jsonl:300", [Source("a.jsonl", "", 300)]),
        ("a.jsonl:body:300,b.txt:100", [Source("a.jsonl", "body", 300), Source("b.txt", "", 100)]),
        ("a.jsonl:2024:", [Source("a.jsonl", "2024")]),
        ("C:\\texts\\a.jsonl:body:3", [Source("C:\\texts\\a.jsonl", "body", 3)]),
        ("C:/a.txt", [Source("C:/a.txt")]),
        ("owner/name:text", [Source("owner/name", "text")]),
        ("c4:64, pydoc:64", [Source("c4", "", 64), Source("pydoc", "", 64)]),
    ],
)
def test_what_a_text_names(text: str, sources: list[Source]) -> None:
    assert parse_sources(text) == sources


@pytest.mark.parametrize(
    "text", ["", "a,,b", ",", "a:b:c:d", "a.txt:text:many", "a.txt:0", "a.txt:text:0", ":300"]
)
def test_what_names_nothing(text: str) -> None:
    with pytest.raises(CalibrationError, match=r"expected|give a file"):
        parse_sources(text)


NAMES = st.text(st.sampled_from("ab:,. 0é"), min_size=1, max_size=8).filter(
    lambda name: name.strip(" .") == name
)


@settings(max_examples=150)
@given(
    names=st.lists(NAMES, min_size=1, max_size=2, unique=True),
    fields=st.lists(st.sampled_from(["", "body"]), min_size=2, max_size=2),
    counts=st.lists(st.one_of(st.none(), st.integers(1, 999)), min_size=2, max_size=2),
)
def test_files_whose_names_have_colons_and_commas(
    names: list[str], fields: list[str], counts: list[int | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever a file is called, it is found, alone and before a field; two are told apart by their folders."""
    wanted = []
    for number, name in enumerate(names):
        path = tmp_path_factory.mktemp("names") / f"n{name}"
        path.write_text("x")
        wanted.append(Source(str(path), fields[number], counts[number]))
    assert parse_sources(wanted[0].place) == [Source(wanted[0].place)]
    spelled = [
        s.place + (f":{s.field}" if s.field else "") + (f":{s.samples}" if s.samples else "") for s in wanted
    ]
    assert parse_sources(",".join(spelled)) == wanted


@given(st.lists(st.one_of(st.none(), st.integers(1, 50)), min_size=1, max_size=6), st.integers(1, 400))
def test_shares_add_up(counts: list[int | None], nsamples: int) -> None:
    sources = [Source("x", "", count) for count in counts]
    said, silent = sum(count or 0 for count in counts), counts.count(None)
    fits = said + silent <= nsamples if silent else said == nsamples
    if not fits:
        with pytest.raises(CalibrationError, match=f"set nsamples={said + silent}"):
            share_samples(sources, nsamples)
        return
    shares = share_samples(sources, nsamples)
    assert sum(shares) == nsamples
    assert all(count in (None, share) for count, share in zip(counts, shares, strict=True))
    rest = [share for count, share in zip(counts, shares, strict=True) if count is None]
    assert not rest or (min(rest) >= 1 and max(rest) - min(rest) <= 1)


def test_several_sources_give_each_its_share(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(lines([{"body": f"{name} " * 50}] * 20), encoding="utf-8")
    text = f"{tmp_path}/a.jsonl:body:5,{tmp_path}/b.jsonl:body:2"
    wanted = for_sources(CalibrationOptions(seqlen=32), text)
    assert wanted.nsamples == 7
    found = gather(text, nsamples=7)
    alone = {name: gather(f"{tmp_path}/{name}.jsonl:body", nsamples=5).tokens for name in "ab"}
    rows = torch.cat([alone["a"], alone["b"][:2]])
    order = list(range(7))
    random.Random(42).shuffle(order)
    assert torch.equal(found.tokens, rows[order])
    assert torch.equal(gather(text, nsamples=7, shuffle=False).tokens, rows)
    assert (
        found.fingerprint
        == gather(text, nsamples=7).fingerprint
        != gather(text, nsamples=7, seed=1).fingerprint
    )
    assert "a.jsonl: the field body, 5 samples; " in found.source
    assert found.source.endswith("b.jsonl: the field body, 2 samples")


def test_other_numbers_than_samples(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 400)
    with pytest.raises(CalibrationError, match="name 3 samples and nsamples is 6: set nsamples=3"):
        for_sources(options(), f"{tmp_path}/a.txt:3")
    with pytest.raises(CalibrationError, match=r"text of .*a\.txt has .* take \d+ samples of it or less"):
        gather(f"{tmp_path}/a.txt:99,pydoc:1", nsamples=100)
    with pytest.raises(CalibrationError, match="`self` stands alone"):
        gather(f"self:3,{tmp_path}/a.txt:3")


# Folders and patterns.


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/.hidden.txt", ".git/x.txt", "c.md"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(name)
    assert documents(str(tmp_path / "f")) == ["b.txt", "c.md", "a/z.txt"]
    assert documents(str(tmp_path / "f" / "*.txt")) == ["b.txt"]
    assert documents(str(tmp_path / "f" / "**" / "*.txt")) == ["a/z.txt", "b.txt"]


def test_a_folder_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    with pytest.raises(
        CalibrationError, match=r"a\.jsonl, 1 in all\) and others \(README\.md, 1 in all\): give those"
    ):
        documents(str(tmp_path))
    assert documents(f"{tmp_path}/*.jsonl") == TEXTS


def test_nothing_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no files in"):
        documents(str(tmp_path))
