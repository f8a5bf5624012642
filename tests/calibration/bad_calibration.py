"""Calibration data that are not there, are no text, or can be read in two ways."""

import gzip
import io
import json
from typing import Any

import torch

from bad_inputs.box import Box, Code
from bad_inputs.case import Arrange, area
from bad_inputs.commands import GPTQ
from zoo import zoo_model

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(99)


def calibrated(name: str, content: str | bytes | None = None, *more: Any) -> Arrange:
    """A calibration file."""

    def arrange(box: Box) -> list[Any]:
        source = name if content is None else box.write(name, content)
        length = () if "seqlen" in "".join(more) else ("--set", "seqlen=32")
        return ["quantize", zoo_model("llama"), *GPTQ, *length, "--calibration", source, *more]

    return arrange


def fielded(name: str, content: str, more: str) -> Arrange:
    """A calibration file with a field, or what else, behind its name."""
    return lambda box: calibrated(f"{box.write(name, content)}{more}")(box)


def saved(content: object) -> Arrange:
    """A calibration file that torch wrote."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return calibrated("ids.pt", buffer.getvalue())


def _templated(template: str) -> Arrange:
    def arrange(box: Box) -> list[Any]:
        model = box.holding("chat_template.jinja", template)
        source = box.write("chats.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n')
        return ["quantize", model, *GPTQ, "--set", "seqlen=32", "--calibration", source]

    return arrange


ROWS = [
    ("no such file", "no file none.txt", calibrated("none.txt")),
    ("an empty folder", "no files in", lambda b: ((b / "d").mkdir(), calibrated(f"{b.folder}/d")(b))[1]),
    (
        "a folder with a picture in it",
        "it begins like a picture",
        lambda b: (b.write("d/a.txt", "text"), b.write("d/b.png", PICTURE), calibrated(f"{b.folder}/d")(b))[
            2
        ],
    ),
    (
        "a folder of rows and texts",
        "give those that are meant",
        lambda b: (b.write("d/a.jsonl", "[]"), b.write("d/README.md", "x"), calibrated(f"{b.folder}/d")(b))[
            2
        ],
    ),
    ("an empty file", "no text in", calibrated("c.txt", "")),
    ("a file of blanks", "no text in", calibrated("c.txt", " \n")),
    ("too little text", "give more text", calibrated("c.txt", "Too little text.")),
    ("bytes that are no text", "UTF-8 text", calibrated("c.txt", bytes(range(256)))),
    ("half a character", "Unicode text is expected", calibrated("c.jsonl", '{"text": "abc \\ud800 def"}\n')),
    ("an id that the model does not know", "token id 5000", calibrated("c.jsonl", json.dumps([5000] * 500))),
    ("a negative id", "token id -5", calibrated("c.jsonl", json.dumps([-5] * 500))),
    ("an id without end", "a list of token ids", calibrated("c.jsonl", json.dumps([10**30] * 500))),
    ("truth values for ids", "a list of token ids", calibrated("c.jsonl", json.dumps([True] * 500))),
    (
        "other columns",
        "the columns title, body, which make no form",
        calibrated("c.jsonl", '{"title": "x", "body": "y"}\n'),
    ),
    (
        "columns that can be read in two ways",
        "c.jsonl:text (texts) or",
        calibrated("c.jsonl", '{"text": "x", "content": "y"}\n'),
    ),
    ("rows of two forms", "rows of one form", calibrated("c.jsonl", '{"text": "x"}\n{"messages": []}\n')),
    ("an unknown field", "no field body; it has", fielded("c.jsonl", '{"text": "x"}\n', ":body")),
    ("a field of a plain text", "has no field body", fielded("c.txt", "x", ":body")),
    ("a share of no samples", "0 samples of", fielded("c.txt", "x", ":0")),
    ("a share that is no number", "is no number of samples", fielded("c.txt", "x", ":body:many")),
    ("other shares than samples", "set nsamples=3,", fielded("c.txt", "x", ":3")),
    ("a share larger than its source", "give more text", fielded("c.txt", "a few words", ":3,pydoc:1")),
    ("a comma without a source behind it", "names no calibration data", fielded("c.txt", "x", ",")),
    ("the model's own text beside a file", "`self` stands alone", fielded("c.txt", "x", ",self")),
    ("a table without a header", "which make no form", calibrated("c.csv", "1,some words\n2,others\n")),
    ("a table of rows of other lengths", "line 3 has 1 fields", calibrated("c.csv", "id,text\n1,x\n2\n")),
    ("a table with an open quote", "is no row of a table", calibrated("c.csv", 'id,text\n1,"x\n')),
    ("a table with a column twice", "'text' twice", calibrated("c.csv", "text,text\nx,y\n")),
    ("an empty table", "no text in", calibrated("c.csv", "")),
    (
        "Latin-1 without saying so",
        "give its encoding",
        calibrated("c.txt", "Un café. ".encode("latin-1") * 99),
    ),
    (
        "UTF-16 without a mark",
        "NUL characters",
        calibrated("c.txt", ("some words " * 99).encode("utf-16-le")),
    ),
    (
        "half a character of UTF-16",
        "cannot be read",
        calibrated("c.txt", "a few words".encode("utf-16")[:-1]),
    ),
    ("an encoding without a file", "there are none", calibrated("pydoc", None, "--encoding", "latin-1")),
    ("a damaged .gz", "cannot be read", calibrated("c.txt.gz", b"1234")),
    ("half a .gz", "it ends too early", calibrated("c.txt.gz", gzip.compress(bytes(9999))[:-9])),
    ("a damaged .bz2", "cannot be read", calibrated("c.txt.bz2", b"1234")),
    ("a damaged .xz", "cannot be read", calibrated("c.txt.xz", b"1234")),
    ("a damaged .zst", "cannot be read", calibrated("c.txt.zst", b"1234")),
    ("gzip under another name", "it begins like gzip", calibrated("c.txt", gzip.compress(b"words " * 99))),
    (
        "a document under a name that says nothing",
        "begins like a PDF",
        calibrated("c.paper", b"%PDF-1.4\nwords"),
    ),
    ("bytes under a name that says nothing", "NUL characters", calibrated("c.data", b"words\0" * 99)),
    ("an archive", "unpack it", calibrated("c.tar.gz", gzip.compress(b"x"))),
    ("packed twice", "packed twice", calibrated("c.txt.gz.gz", gzip.compress(b"x"))),
    ("nothing in the column", "no text in", calibrated("c.jsonl", '{"text": null}\n')),
    ("a damaged line", "line 2 is no JSON", calibrated("c.jsonl", '{"text": "x"}\n{"text": \n')),
    ("JSON nested without end", "recursion depth", calibrated("c.json", "[" * 100_000)),
    (
        "a chat template for texts, and no chat template",
        "the tokenizer has none",
        calibrated("c.txt", "Some words. " * 99, "--set", "chat_template=true"),
    ),
    (
        "messages of other keys",
        "has the keys who",
        calibrated("c.jsonl", '{"messages": [{"who": "me"}]}\n'),
    ),
    (
        "a part of a message that is no text",
        "a part of the type image",
        calibrated("c.jsonl", '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n'),
    ),
    (
        "an unknown speaker",
        "from 'narrator'",
        calibrated("c.jsonl", '{"conversations": [{"from": "narrator", "value": "x"}]}\n'),
    ),
    (
        "chats that the template does not take",
        "do not go into",
        _templated("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}"),
    ),
    ("a damaged chat template", "do not go into", _templated("{% for m in messages %}{{ m['content'] ")),
    (
        "samples longer than the model's positions",
        "set seqlen to 512",
        calibrated("pydoc", None, "--set", "seqlen=1024"),
    ),
    ("a damaged .parquet", "cannot be read", calibrated("c.parquet", bytes(range(256)))),
    ("a .pt with code in it", "UnpicklingError", saved([Code()])),
    ("a .pt of random bytes", "UnpicklingError", calibrated("c.pt", b"1234")),
    ("an empty .pt", "EOFError", calibrated("c.pt", b"")),
    ("a .pt of fractions", "a tensor of token ids", saved(torch.rand(10, 32))),
    ("a .pt of truth values", "a tensor of token ids", saved(torch.ones(10, 32, dtype=torch.bool))),
    (
        "a .pt of a sparse tensor",
        "a tensor of token ids",
        saved(torch.ones(10, 32, dtype=torch.int64).to_sparse()),
    ),
    (
        "a .pt of a tensor without data",
        "a tensor of token ids",
        saved(torch.ones(9, 9, dtype=torch.int64, device="meta")),
    ),
    (
        "a .pt of a mapping",
        "a tensor of token ids",
        saved({"input_ids": torch.ones(10, 32, dtype=torch.int64)}),
    ),
]

AREA = area("Calibration data", ROWS, code=4)
