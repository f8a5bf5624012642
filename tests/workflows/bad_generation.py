"""Prompts that a model cannot go on from."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

import roundel
from bad_inputs.box import Box
from bad_inputs.case import area
from zoo import zoo_model


def _broken(box: Box) -> Path:
    recipe = roundel.Recipe.create(method="rtn", group_size=32, format="roundel")
    roundel.quantize(zoo_model("llama"), recipe, output=box / "small", held_out=None)
    file = box / "small" / "roundel.safetensors"
    with safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if not name.endswith("layers.0.mlp.up_proj.scale")]  # noqa: SIM118
        tensors, about = {name: opened.get_tensor(name).clone() for name in names}, opened.metadata()
    save_file(tensors, file, about)
    return box / "small"


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
        "packed weights of a model that has none",
        3,
        "cannot be opened with packed weights (its weights are dense)",
        lambda b: ["generate", zoo_model("llama"), "The", "--packed"],
    ),
    (
        "a way to multiply by packed weights, and decoded ones",
        2,
        "packed=False (--no-packed) decodes them",
        lambda b: ["generate", zoo_model("llama"), "The", "--no-packed", "--mode", "fast"],
    ),
    (
        "integers that are in part missing",
        3,
        "the integers of model.layers.0.mlp.up_proj in small cannot be read",
        lambda b: ["generate", _broken(b), "The", "--packed"],
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
