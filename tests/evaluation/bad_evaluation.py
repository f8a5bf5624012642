"""Texts, windows, references and models that cannot be evaluated."""

from typing import Any

import torch

from bad_inputs.box import UP, Box
from bad_inputs.case import Arrange, area
from bad_inputs.commands import evaluated
from zoo import zoo_model


def read(content: str | bytes) -> Arrange:
    """A text to evaluate on."""
    return lambda box: evaluated(box, zoo_model("llama"), "--text", box.write("held-out.txt", content))


def _table(content: str, more: str = "") -> Arrange:
    """A table to evaluate on."""
    return lambda box: [
        "eval",
        zoo_model("llama"),
        "--window",
        "64",
        "--text",
        f"{box.write('c.csv', content)}{more}",
    ]


def _wide_reference(box: Box) -> list[Any]:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], tensors[name][:6]])

    return evaluated(box, zoo_model("llama"), "--reference", box.tensors(widen, vocab_size=1030))


ROWS = [
    (
        "packed weights, and a block of them at a time",
        2,
        "packed weights are in memory whole",
        lambda b: evaluated(b, zoo_model("llama"), "--packed", "--block-by-block"),
    ),
    ("no such text", 4, "no text none.txt", lambda b: evaluated(b, zoo_model("llama"), "--text", "none.txt")),
    ("an empty text", 4, "no text in", read("")),
    ("a text shorter than a window", 4, "a smaller --window", read("Few words.")),
    ("bytes that are no text", 4, "UTF-8 text is expected", read(bytes(range(256)))),
    ("a table without a column of text", 4, "which make no form", _table("id,story\n1,x\n")),
    ("a table with two columns of text", 4, "(texts) or", _table("text,content\nx,y\n")),
    ("a number of samples of a text", 4, "FILE:FIELD is expected", _table("text\nx\n", ":300")),
    (
        "an encoding that nobody knows",
        2,
        "is no encoding of text",
        lambda b: evaluated(b, zoo_model("llama"), "--encoding", "klingon"),
    ),
    (
        "windows longer than the model's positions",
        3,
        "exceed the 512 positions",
        lambda b: evaluated(b, zoo_model("llama"), "--window", "600"),
    ),
    (
        "windows longer than the reference's positions",
        3,
        "exceed the 32 positions",
        lambda b: evaluated(b, zoo_model("llama"), "--reference", b.config(max_position_embeddings=32)),
    ),
    ("windows of one token", 2, "'--window'", lambda b: evaluated(b, zoo_model("llama"), "--window", "1")),
    ("a reference with another vocabulary", 3, "a reference with the same vocabulary", _wide_reference),
    (
        "a reference that knows fewer tokens",
        3,
        "knows 0 to 199",
        lambda b: evaluated(b, zoo_model("llama"), "--reference", b.narrow(200)),
    ),
    (
        "a model that knows fewer tokens than its tokenizer",
        3,
        "knows 0 to 199",
        lambda b: evaluated(b, b.narrow(200)),
    ),
    (
        "no such reference",
        3,
        "no folder",
        lambda b: evaluated(b, zoo_model("llama"), "--reference", "./none"),
    ),
    ("a model without a tokenizer", 3, "without a tokenizer", lambda b: evaluated(b, b.without("token*"))),
    ("a damaged tokenizer", 3, "the tokenizer in", lambda b: evaluated(b, b.holding("tokenizer.json", "{"))),
    ("NaN in the model", 7, "hold NaN or infinity", lambda b: evaluated(b, b.filled(UP, float("nan")))),
    (
        "a method of quantization that nobody knows",
        3,
        "quantized by warp",
        lambda b: evaluated(b, b.config(quantization_config={"quant_method": "warp"})),
    ),
    (
        "a damaged folder in Roundel's container",
        3,
        "cannot be read",
        lambda b: evaluated(b, b.quantized("roundel", "roundel.safetensors", "12")),
    ),
    (
        "figures into a folder that is not there",
        6,
        "an existing folder",
        lambda b: evaluated(b, zoo_model("llama"), "--json", "no/f.json"),
    ),
    (
        "figures into somebody's file",
        6,
        "is no file of figures as roundel wrote it",
        lambda b: evaluated(b, zoo_model("llama"), "--json", b.write("f.json", "{}")),
    ),
]

AREA = area("`roundel eval`", ROWS)
