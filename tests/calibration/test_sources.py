"""People's data as they have them: the same documents in every form of file give the same calibration tokens."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundel.calibration.forms import Chat, as_document
from roundel.calibration.gather import Calibration, for_sources, gather_calibration
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.sources import Source, parse_sources, share_samples
from roundel.calibration.texts import read_documents
from roundel.calibration.tokens import pack_documents
from roundel.errors import CalibrationError
from roundel.system.progress import Progress
from zoo.prefixes import tokenizer_with
from zoo.texts import Model, arrow, lines, parquet, tabular

TEXTS = [f'Thing {n}: "quoted", with commas;\nmore lines\tand tabs, ä, 漢.' for n in range(40)]
CHATS = [[("user", f"What is {n}?"), ("assistant", f"It is {n}, of course.")] for n in range(40)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
# Gemma's: no system, turns alternate, the user first.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)


class Told(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def options(**values: Any) -> CalibrationOptions:
    return CalibrationOptions(**{"nsamples": 6, "seqlen": 32, **values})


def gather(
    source: Any, template: str | None = None, told: Progress | None = None, **values: Any
) -> Calibration:
    tokenizer = tokenizer_with("<s> $A")
    tokenizer.chat_template = template
    return gather_calibration(source, Model(), tokenizer, options(**values), told or Progress())


def documents(source: str, encoding: str | None = None) -> list[Any]:
    (place,) = parse_sources(source)
    return read_documents(place, encoding).documents


ROWS = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
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


# Chats.

TURNS = [[{"role": role, "content": said} for role, said in chat] for chat in CHATS]
SPELLED: dict[str, list[Any]] = {
    "messages": [{"messages": chat} for chat in TURNS],
    "ShareGPT": [
        {"id": "x", "conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": s} for r, s in chat]}
        for chat in CHATS
    ],
    "typed parts": [
        {"messages": [{"role": r, "content": [{"type": "text", "text": s}]} for r, s in chat]} for chat in CHATS
    ],
    "Alpaca": [{"instruction": a[1], "input": "", "output": b[1]} for a, b in CHATS],
    "completions": [{"prompt": a[1], "completion": b[1]} for a, b in CHATS],
    "completions of messages": [{"prompt": chat[:1], "completion": chat[1:]} for chat in TURNS],
    "preferences": [{"prompt": a[1], "chosen": b[1], "rejected": "No."} for a, b in CHATS],
    "preferences of chats": [{"chosen": chat, "rejected": chat[:1]} for chat in TURNS],
    "preferences, prompt repeated": [{"prompt": c[0]["content"], "chosen": c, "rejected": c[:1]} for c in TURNS],
    "bare chats": TURNS,
}  # fmt: skip


def rendered(template_free: bool = False) -> torch.Tensor:
    """By hand: what the template makes of the chats, packed as any text."""
    joint = "\n\n"
    if template_free:
        texts = [joint.join(said for _, said in chat) for chat in CHATS]
    else:
        texts = ["".join(f"<{role}>{said}\n" for role, said in chat) for chat in CHATS]
    return pack_documents(texts, tokenizer_with("<s> $A"), options())


IN_FILES = [(name, suffix) for name in SPELLED for suffix in (".jsonl", ".json", ".parquet")]
IN_FILES.remove(("bare chats", ".parquet"))  # whose rows have columns


@pytest.mark.parametrize(("name", "suffix"), IN_FILES)
def test_chats_in_every_spelling_go_through_the_template(name: str, suffix: str, tmp_path: Path) -> None:
    rows = SPELLED[name]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet(rows, path)
    else:
        path.write_text(lines(rows) if suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    told = Told()
    found = gather(str(path), TEMPLATE, told)
    assert torch.equal(found.tokens, rendered())
    assert told.said == [f"Calibration: {found.source}"]
    assert f"a{suffix}: " in found.source
    assert found.source.endswith(", through the model's chat template, 6 samples")
    assert ("(ShareGPT)" in found.source) == (name == "ShareGPT")


def test_without_a_template_turns_are_joined_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(SPELLED["ShareGPT"]), encoding="utf-8")
    found = gather(str(path))
    assert torch.equal(found.tokens, rendered(template_free=True))
    assert "turns joined as plain text, since the model has no chat template" in found.source
    refused = gather(str(path), TEMPLATE, chat_template=False)
    assert torch.equal(refused.tokens, found.tokens)
    assert "as chat_template=false says" in refused.source


def test_a_prompt_runs_on_into_its_completion_without_a_template() -> None:
    chat = as_document({"prompt": "The sky", "completion": " is blue."}, "row")
    assert isinstance(chat, Chat)
    assert chat.joint.join(chat.texts) == "The sky is blue."


def text_of(messages: list[dict[str, Any]], template: str) -> tuple[str, str]:
    from roundel.calibration.chats import Renderer

    tokenizer = tokenizer_with("<s> $A")
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer, None)
    return renderer.text(Chat(messages)), renderer.summary


def test_a_template_that_refuses_system_texts_and_other_orders() -> None:
    messages = [
        {"role": "assistant", "content": "Hello."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Three."},
        {"role": "tool", "content": "4"},
    ]
    text, words = text_of(messages, STRICT)
    assert text == "<user>Be brief.\n\nOne?\n\nTwo?\n<assistant>Three.\n<user>4\n"
    assert "1 of 1 chats adapted" in words
    text, words = text_of([{"role": "assistant", "content": "Hello."}], STRICT)
    assert (text, words) == ("", "1 without a user's turn left out")


def test_a_template_that_leaves_something_out_is_found_out() -> None:
    silent = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}\n{% endif %}{% endfor %}"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    text, words = text_of(chat, silent)
    assert text == "<user>Be brief.\n\nWhy?\n"
    assert "adapted" in words
    in_parts = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}\n{% endfor %}"
    assert text_of(chat, in_parts)[0] == "<system>Be brief.\n<user>Why?\n"
    with pytest.raises(CalibrationError, match=r"leaves out what system says.*chat_template=false"):
        text_of(chat, "nothing")


def test_a_template_that_writes_the_day_writes_the_same_every_day() -> None:
    text, _ = text_of(
        [{"role": "user", "content": "a"}], "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
    )
    assert text == "2025-01-01 a"
    nested = "{% macro head() %}{{ strftime_now('%d %b %Y') }}: {% endmacro %}{{ head() }}{{ messages[0].content }}"
    assert text_of([{"role": "user", "content": "a"}], nested)[0] == "01 Jan 2025: a"


def test_thoughts_that_a_template_drops_are_no_loss() -> None:
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>hm</think>\nb"}]
    assert text_of(chat, template)[1] == "through the model's chat template"


def test_what_else_belongs_to_a_row() -> None:
    alpaca = {
        "instruction": "Add.",
        "input": "1 and 2",
        "output": "3",
        "system": "Be exact.",
        "history": [["a", "b"]],
    }
    chat = as_document(alpaca, "row")
    assert isinstance(chat, Chat)
    assert [(m["role"], m["content"]) for m in chat.messages] == [
        ("system", "Be exact."), ("user", "a"), ("assistant", "b"), ("user", "Add.\n\n1 and 2"), ("assistant", "3"),
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given_tools in (tools, json.dumps(tools)):
        chat = as_document({"messages": TURNS[0], "tools": given_tools}, "row")
        assert chat == Chat(TURNS[0], tools)
    assert as_document({"chosen": "Human: hi", "rejected": "no"}, "row") == "Human: hi"


# Which columns.


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"titel": "x", "body": "y"}, r"the columns titel, body.*a\.jsonl:COLUMN"),
        ({"text": "x", "content": "y"}, r"read in 2 ways: give a\.jsonl:text \(texts\) or a\.jsonl:content \(texts\)"),
        (
            {"instruction": "x", "input": "", "output": "y", "text": "z"},
            r"a\.jsonl:instruction\+output\+input \(instructions with answers \(Alpaca\)\) or a\.jsonl:text",
        ),
        ({"input_ids": [1], "text": "x"}, "read in 2 ways"),
        ({"text": 3}, "text of .* is 3; a text is expected"),
        ({"messages": 3}, "has 3 for messages"),
        ({"messages": [{"who": "me"}]}, "message 0 of .* has the keys who; role and content"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "from 'narrator'; one of human"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "part of the type image; text is expected"),
        ({"prompt": "a", "question": "b", "chosen": "c", "rejected": "d"}, "prompt and question beside chosen"),
        ({"instruction": "a", "output": ["b", 3]}, "for messages"),
        ({"messages": [], "tools": "{"}, "tools of .* is no JSON"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "history of .* pairs of texts"),
        ({}, "no columns"),
    ],
)  # fmt: skip
def test_doubtful_columns(row: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(lines([row]), encoding="utf-8")
    with pytest.raises(CalibrationError, match=complaint):
        documents("a.jsonl")


def test_fields_by_name(tmp_path: Path) -> None:
    rows = [{"body": f"b{n}", "text": "t", "a+b": "c", "ids": [n], "dialog": TURNS[0]} for n in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_text(lines(rows), encoding="utf-8")
    assert documents(f"{path}:body") == ["b0", "b1", "b2"]
    assert documents(f"{path}:a+b") == ["c"] * 3
    assert documents(f"{path}:ids") == [[0], [1], [2]]
    assert documents(f"{path}:dialog") == [Chat(TURNS[0])] * 3
    with pytest.raises(CalibrationError, match="no field bodi; it has the columns body, text"):
        documents(f"{path}:bodi")
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps([{"instruction": "i", "input": "", "output": "o", "text": "t"}]))
    assert documents(f"{alpaca}:text") == documents(f"{alpaca}:text:") == ["t"]
    (chat,) = documents(f"{alpaca}:instruction+output")
    assert chat.texts == ["i", "o"]


MIXED = [
    ([{"text": "x"}, {"messages": TURNS[0]}], r"line 2 .* is chats of the column messages, and line 1 .* texts"),
    ([{"text": "x"}, "y"], "line 2 .* is texts, and line 1"),
    (["y", {"text": "x"}], "line 2 .* is an object with the columns text, and line 1 .* texts"),
    (["y", [1, 2]], "line 2 .* is token ids"),
    ([{"text": "x"}, {"title": "y"}], "line 2 .* is an object with the columns title"),
    ([{"text": "x", "messages": None}, {"text": None, "messages": TURNS[0]}], "line 2 .* is chats"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "complaint"), MIXED)
def test_rows_of_several_forms(rows: list[Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(rows), encoding="utf-8")
    with pytest.raises(CalibrationError, match=complaint):
        documents(str(tmp_path / "a.jsonl"))


def test_rows_without_a_value_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([{"text": None}, {"text": "x"}, {"text": None}, {"text": ""}]))
    assert documents(str(tmp_path / "a.jsonl")) == ["x"]


# Several sources.


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
    with pytest.raises(CalibrationError, match=r"wanted|give a file"):
        parse_sources(text)


NAMES = st.text(st.sampled_from("ab:,. 0é"), min_size=1, max_size=8).filter(
    lambda name: name.strip(" .") == name
)


@settings(max_examples=150, deadline=None)
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
