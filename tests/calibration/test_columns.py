"""Which columns of a file are read: what is doubtful is refused, and what is named is taken."""

import json
from pathlib import Path
from typing import Any

import pytest

from calibration.gathered import TURNS, documents
from roundel.calibration.forms import Chat
from roundel.errors import CalibrationError
from zoo.texts import lines


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
