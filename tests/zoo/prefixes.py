"""Tokenizers that put something in front of a text, or behind it: the zoo's with the post-processors of real models."""

from typing import Any

from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from zoo.training import train_tokenizer

# A post-processor's template, and what it puts in front.
FORMS = {
    "nothing": ("$A", []),
    "begin of text": ("<s> $A", ["<s>"]),
    "two tokens": ("[gMASK] <s> $A", ["[gMASK]", "<s>"]),
    "both ends": ("<s> $A </s>", ["<s>"]),
    "an end": ("$A </s>", []),
}


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """The zoo's, with a post-processor."""
    found = PreTrainedTokenizerFast.from_pretrained(None, tokenizer_object=_copy(), eos_token="<|end|>")
    special = ["<s>", "</s>", "[gMASK]"]
    found.add_tokens([AddedToken(token, special=True) for token in special], special_tokens=True)
    named = [(token, found.convert_tokens_to_ids(token)) for token in special]
    found.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=named)
    return found


def _copy() -> Any:
    backend = train_tokenizer().backend_tokenizer
    return type(backend).from_str(backend.to_str())
