"""Rows begin as the model's texts begin. Tokenizers are real ones, with the post-processors of real models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from roundel.calibration.forms import Chat
from roundel.calibration.gather import gather_calibration
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.prefix import text_prefix
from roundel.calibration.self_text import sample_from_model
from roundel.calibration.tokens import pack_documents
from roundel.errors import CalibrationError
from roundel.system.progress import Progress
from zoo.prefixes import FORMS, tokenizer_with


def options(**values: Any) -> CalibrationOptions:
    return CalibrationOptions(**{"nsamples": 3, "seqlen": 16, "shuffle": False, **values})


def begin(rows: torch.Tensor, prefix: Sequence[int]) -> bool:
    return rows[:, : len(prefix)].tolist() == [list(prefix)] * len(rows)


@pytest.mark.parametrize("form", FORMS)
def test_the_prefix_is_what_stands_before_the_text(form: str) -> None:
    template, tokens = FORMS[form]
    tokenizer = tokenizer_with(template)
    assert text_prefix(tokenizer) == tokenizer.convert_tokens_to_ids(tokens)


def test_a_begin_of_text_token_that_is_not_used_is_no_prefix(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    assert tokenizer.bos_token_id is not None
    assert text_prefix(tokenizer) == []


def test_the_prefix_of_a_llama(tinystories: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tinystories)
    assert text_prefix(tokenizer) == [tokenizer.bos_token_id]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20)
@given(texts=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=8))
def test_every_row_begins_so_and_the_text_is_all_there(form: str, texts: list[str]) -> None:
    tokenizer = tokenizer_with(FORMS[form][0])
    prefix, texts = text_prefix(tokenizer), texts * 80
    running = [i for text in texts for i in [*tokenizer.encode(text, add_special_tokens=False), 0]]
    rows = pack_documents(texts, tokenizer, options())
    assert begin(rows, prefix)
    assert rows[:, len(prefix) :].flatten().tolist() == running[: 3 * (16 - len(prefix))]
    bare = pack_documents(texts, tokenizer, options(add_bos=False))
    assert bare.flatten().tolist() == running[: 3 * 16]


def test_chats_do_not_begin_twice() -> None:
    tokenizer = tokenizer_with("<s> $A")
    tokenizer.chat_template = "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<|end|>"
    chat = [{"role": "user", "content": "What is a class, and what is an object?"}]
    once = tokenizer.encode("[user]What is a class, and what is an object?<|end|>", add_special_tokens=False)
    rows = pack_documents([Chat(chat)] * 20, tokenizer, options())
    assert begin(rows, text_prefix(tokenizer))
    assert rows[:, 1:].flatten().tolist() == (once * 20)[: 3 * 15]


@pytest.mark.parametrize("ids", [[[7] * 16] * 3, [[7] * 40, [8] * 40]])
def test_token_ids_stay_as_they_are(ids: list[list[int]]) -> None:
    rows = pack_documents(ids, tokenizer_with("<s> $A"), options())
    assert rows.flatten().tolist() == [token for row in ids for token in row][:48]


class Counting:
    """A model that writes 100, 101, 102, ..."""

    config = generation_config = None

    def forward(self, input_ids: torch.Tensor) -> None:
        raise AssertionError("it writes by itself")

    def parameters(self):
        yield torch.zeros(1)

    def generate(self, prompt, *, generation_config, **_):
        count = generation_config.max_new_tokens
        written = torch.arange(100, 100 + count).expand(len(prompt), count)
        return torch.cat([prompt, written], dim=1)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_what_the_model_writes_begins_so_too(form: str, add_bos: bool) -> None:
    tokenizer = tokenizer_with(FORMS[form][0])
    prefix = text_prefix(tokenizer) if add_bos else []
    rows = sample_from_model(Counting(), tokenizer, options(nsamples=40, add_bos=add_bos))
    assert rows.shape == (40, 16)
    assert rows.tolist() == [[*prefix, *range(100, 116 - len(prefix))]] * 40


def test_a_row_that_holds_the_prefix_alone() -> None:
    tokenizer = tokenizer_with(" ".join(["<s>"] * 8) + " $A")
    with pytest.raises(
        CalibrationError, match="8 tokens in front of a text, and seqlen is 8: .* or add_bos=false"
    ):
        pack_documents(["a text"] * 9, tokenizer, options(seqlen=8))


@pytest.mark.parametrize("source", ["text.txt", "text.jsonl", "text.parquet", "pydoc", "self", "in memory"])
def test_every_source(source: str, llama: Path, tmp_path: Path, load_model, held_out: Path) -> None:
    model, _ = load_model(llama)
    tokenizer = tokenizer_with("</s> $A")
    # The model's embedding knows the zoo's tokens only.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    texts = held_out.read_text(encoding="utf-8").split("\n\n")
    path = tmp_path / source
    if source == "text.txt":
        path.write_text("\n\n".join(texts), encoding="utf-8")
    elif source == "text.jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    elif source == "text.parquet":
        pytest.importorskip("pyarrow")
        from pyarrow import parquet, table

        parquet.write_table(table({"text": texts}), path)
    given: Any = {"in memory": texts, "pydoc": "pydoc", "self": "self"}.get(source, str(path))
    found = gather_calibration(given, model, tokenizer, options(nsamples=8, seqlen=32), Progress())
    assert begin(found.tokens, [0])
    assert found.tokens[:, 1:].unique().numel() > 20
