"""Prompts that a model cannot go on from."""

from bad_inputs.case import area
from zoo import zoo_model

ROWS = [
    ("no such model", 3, "no folder", lambda b: ["generate", "./none", "x"]),
    ("an empty prompt", 3, "the prompt has no tokens", lambda b: ["generate", zoo_model("llama"), ""]),
    (
        "a model that knows fewer tokens",
        3,
        "knows 0 to 99",
        lambda b: ["generate", b.narrow(100), "The word"],
    ),
    (
        "more tokens than the model's positions",
        3,
        "exceed the 512 positions",
        lambda b: ["generate", zoo_model("llama"), "The", "--max-new-tokens", "600"],
    ),
    ("no prompt", 2, "there is no prompt", lambda b: ["generate", zoo_model("llama")]),
    (
        "a chat without a chat template",
        3,
        "has no chat template",
        lambda b: ["generate", zoo_model("llama"), "--chat"],
    ),
    (
        "a chat, and raw text",
        2,
        "--raw and --chat are given",
        lambda b: ["generate", zoo_model("llama"), "--chat", "--raw"],
    ),
]

AREA = area("`roundel generate`", ROWS)
