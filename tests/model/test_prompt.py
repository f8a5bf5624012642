"""What is generated from: a chat where the tokenizer has a template, else or with raw the text itself."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from roundel.errors import ModelError

PLAIN = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = PLAIN.replace("m['content']", "m['content'][0]['text']")
SILENT = "{% for m in messages %}<|{{ m['role'] }}|>{% endfor %}"
STRICT = "{{ raise_exception('no user here') }}"


def chatting(model: Path, folder: Path, template: str) -> Path:
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", [PLAIN, PARTS])
def test_a_chat_is_answered(template: str, llama: Path, tmp_path: Path) -> None:
    """The oracle is transformers' own `generate` on the rendered chat."""
    folder = chatting(llama, tmp_path / "model", template)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("<|user|> The statement\n<|assistant|>", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(ids["input_ids"], do_sample=False, max_new_tokens=8)
    wanted = tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert roundel.generate(folder, "The statement", max_new_tokens=8) == wanted


def test_raw_goes_on_with_the_text(llama: Path, tmp_path: Path) -> None:
    folder = chatting(llama, tmp_path / "model", PLAIN)
    wanted = roundel.generate(llama, "The statement", max_new_tokens=8)
    assert wanted.startswith("The statement")
    assert roundel.generate(folder, "The statement", max_new_tokens=8, raw=True) == wanted
    assert roundel.generate(folder, "The statement", max_new_tokens=8) != wanted


@pytest.mark.parametrize(("template", "words"), [(SILENT, "leaves out"), (STRICT, "no user here")])
def test_a_template_that_does_not_take_it(template: str, words: str, llama: Path, tmp_path: Path) -> None:
    folder = chatting(llama, tmp_path / "model", template)
    with pytest.raises(ModelError, match=f"chat template.*{words}.*--raw"):
        roundel.generate(folder, "The statement")
    with pytest.raises(ModelError, match="prompt is empty"):
        roundel.generate(folder, " ")
    with pytest.raises(ModelError, match="no tokens"):
        roundel.generate(folder, "", raw=True)
