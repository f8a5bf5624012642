"""The metadata `tokenizer.*` of a GGUF file."""

from pathlib import Path
from typing import Any

from gguf import GGUFWriter

from roundel.errors import FormatError
from roundel.formats.gguf.tokenizer.vocabulary import vocabulary_of

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_PROBE = "a"


def add_tokenizer(
    writer: GGUFWriter, tokenizer: Any, folder: Path | None, config: Any, named: dict[str, str] | None = None
) -> None:
    """Add all that llama.cpp must know of a tokenizer.

    Args:
        writer: gets the keys.
        tokenizer: of transformers; None is refused.
        folder: with its files; None: there are none.
        config: of the language model.
        named: special tokens that an architecture has by their texts, where the tokenizer does not say so.

    Raises:
        FormatError: llama.cpp has no such tokenizer, or Roundel cannot tell which.
    """
    if tokenizer is None:
        raise FormatError(
            "the model has no tokenizer: a GGUF file holds one; put its files beside the weights, or name a file that "
            "llama.cpp's converter made of the same model with --like base.gguf"
        )
    found = vocabulary_of(tokenizer, folder, _rows(config))
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    writer.add_token_types(found.kinds)
    if found.merges is not None:
        writer.add_token_merges(found.merges)
    for kind, number in _special_ids(tokenizer, config, named or {}).items():
        getattr(writer, f"add_{kind}_token_id")(number)
    first, last = _added_around(tokenizer)
    writer.add_add_bos_token(first)
    writer.add_add_eos_token(last)
    if found.blank_first is not None:
        writer.add_add_space_prefix(found.blank_first)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        writer.add_chat_template([{"name": name, "template": text} for name, text in template.items()])
    elif template:
        writer.add_chat_template(template)


def _rows(config: Any) -> int:
    return int(getattr(config, "padded_vocab_size", None) or config.vocab_size)


def _special_ids(tokenizer: Any, config: Any, named: dict[str, str]) -> dict[str, int]:
    """Numbers of special tokens: as the tokenizer says, else the config, else the architecture."""
    found = {}
    for kind in _SPECIAL:
        for owner in (tokenizer, config):
            number = getattr(owner, f"{kind}_token_id", None)
            if isinstance(number, int) and kind not in found:
                found[kind] = number
    added = tokenizer.get_added_vocab()
    for kind, text in named.items():
        if kind not in found and text in added:
            found[kind] = added[text]
    return found


def _added_around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text gets a BOS before and an EOS behind it: that is seen in what becomes of one."""
    around = tokenizer(_PROBE)["input_ids"]
    inside = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if len(around) == len(inside):
        return False, False
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bos is not None and around[0] == bos, eos is not None and around[-1] == eos
