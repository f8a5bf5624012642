"""Folders that are no model, or none that can be quantized: names, configs, tokenizers.

Stored forms and adapters have files of their own, and stand under the same heading.
"""

from typing import Any

from bad_inputs.box import Box, edit
from bad_inputs.case import area
from bad_inputs.commands import quantize
from model.bad_adapters import ADAPTERS
from model.bad_stored import STORED


def _tokenizer_of_nothing(box: Box) -> list[Any]:
    model = box.model()
    edit(model / "tokenizer.json", lambda data: data.update(model={"type": "Warp"}))
    return quantize(model)


ROWS = [
    ("no such folder", "no folder", lambda b: quantize(b / "nowhere")),
    ("an empty name", "the model's name is empty", lambda b: quantize("")),
    ("a text file", "is a file", lambda b: quantize(b.write("notes.txt", "x"))),
    ("config.json absent", "no config.json", lambda b: quantize(b.without("config.json"))),
    ("config.json cut", "a JSON file is expected", lambda b: quantize(b.holding("config.json", "{"))),
    (
        "config.json of random bytes",
        "a JSON file is expected",
        lambda b: quantize(b.holding("config.json", b"\xff\xfe")),
    ),
    ("config.json with a list", "holds list", lambda b: quantize(b.holding("config.json", "[1]"))),
    ("config.json without model_type", "names no model_type", lambda b: quantize(b.config(model_type=None))),
    (
        "a masked language model",
        "is no causal language model (BertForMaskedLM)",
        lambda b: quantize(b.config(model_type="bert", architectures=["BertForMaskedLM"])),
    ),
    (
        "an encoder and a decoder",
        "(T5ForConditionalGeneration, whose decoder reads what an encoder makes)",
        lambda b: quantize(b.config(model_type="t5", architectures=["T5ForConditionalGeneration"])),
    ),
    (
        "a model that sees, with an encoder of text",
        "(Florence2ForConditionalGeneration, whose decoder reads what an encoder makes)",
        lambda b: quantize(
            b.config(model_type="florence2", architectures=["Florence2ForConditionalGeneration"])
        ),
    ),
    (
        "several models in one",
        "(Qwen2_5OmniForConditionalGeneration, several models in one",
        lambda b: quantize(
            b.config(model_type="qwen2_5_omni", architectures=["Qwen2_5OmniForConditionalGeneration"])
        ),
    ),
    ("an unknown model_type", "unheard-of", lambda b: quantize(b.config(model_type="unheard-of"))),
    ("a width in words", "expected int, got str", lambda b: quantize(b.config(hidden_size="wide"))),
    ("no attention heads", "cannot be opened", lambda b: quantize(b.config(num_attention_heads=0))),
    ("no blocks", "no stack of decoder blocks", lambda b: quantize(b.config(num_hidden_layers=0))),
    ("an unknown activation", "cannot be built", lambda b: quantize(b.config(hidden_act="warp"))),
    ("a type that does not exist", "float17", lambda b: quantize(b.config(dtype="float17"))),
    (
        "fp8 in config.json",
        "is stored in torch.float8_e4m3fn",
        lambda b: quantize(b.config(dtype="float8_e4m3fn")),
    ),
    (
        "config.json of a model with another vocabulary",
        "has the shape (1024, 96), and by config.json (1000, 96)",
        lambda b: quantize(b.config(vocab_size=1000)),
    ),
    (
        "config.json of a model with other blocks",
        "has the shape (48, 96), and by config.json (72, 96)",
        lambda b: quantize(b.config(num_key_value_heads=3)),
    ),
    (
        "more blocks in config.json",
        "9 tensors are missing",
        lambda b: quantize(b.config(num_hidden_layers=3)),
    ),
    (
        "fewer blocks in config.json",
        "the model has 1 blocks",
        lambda b: quantize(b.config(num_hidden_layers=1)),
    ),
    (
        "a weight file named in config.json",
        "names its own weight file",
        lambda b: quantize(b.config(transformers_weights="other.safetensors")),
    ),
    (
        "generation_config.json cut",
        "generation_config.json cannot be read",
        lambda b: quantize(b.holding("generation_config.json", "{")),
    ),
    ("tokenizer.json cut", "the tokenizer in", lambda b: quantize(b.holding("tokenizer.json", "{"))),
    ("tokenizer.json of an unknown kind", "the tokenizer in", _tokenizer_of_nothing),
    (
        "tokenizer_config.json cut",
        "the tokenizer in",
        lambda b: quantize(b.holding("tokenizer_config.json", "{")),
    ),
    ("tokenizer.json absent", "the tokenizer in", lambda b: quantize(b.without("tokenizer.json"))),
    *STORED,
    *ADAPTERS,
]

AREA = area("The model", ROWS, code=3)
