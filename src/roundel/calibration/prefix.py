"""What a tokenizer puts in front of every text.

The tokenizers of Llama, Gemma and Mistral begin each text with the begin-of-text token, ChatGLM's with two tokens, most
others with none. In service every prompt begins so, and in many of these models the very first token makes the massive
activations on which attention leans (Sun et al., arXiv 2402.17762): a model that is calibrated, or measured, on rows
that begin otherwise is one that nobody runs.

Whether a tokenizer has a begin-of-text token does not say whether it uses it (GPT-2's and SmolLM2's do not), so it is
asked to tokenize a text with and without its special tokens.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

_PROBE = "a b"


def text_prefix(tokenizer: Any) -> list[int]:
    """The token ids that a tokenizer puts in front of a text; none for one that puts nothing."""
    frame = special_frame(tokenizer)
    if frame is not None:
        return frame[0]
    # A tokenizer that cuts the text itself otherwise between special tokens.
    special = set(tokenizer.all_special_ids)
    return list(takewhile(special.__contains__, tokenizer(_PROBE)["input_ids"]))


def special_frame(tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """The token ids that a tokenizer puts in front of a text and behind it; None where it cuts the text otherwise."""
    whole: list[int] = list(tokenizer(_PROBE)["input_ids"])
    bare: list[int] = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return None


def without_prefix(ids: Sequence[int], prefix: Sequence[int]) -> list[int]:
    """Token ids without the prefix that a chat template, or the text itself, has written in front already."""
    begins = bool(prefix) and list(ids[: len(prefix)]) == list(prefix)
    return list(ids[len(prefix) :] if begins else ids)


def with_prefix(rows: torch.Tensor, prefix: Sequence[int]) -> torch.Tensor:
    """`[N, S]` token ids as rows `[N, len(prefix) + S]` that each begin with the prefix."""
    front = torch.tensor(prefix, dtype=rows.dtype).expand(len(rows), len(prefix))
    return torch.cat([front, rows], dim=1)


def describe_prefix(prefix: Sequence[int], tokenizer: Any) -> str:
    """The prefix as the tokenizer spells it, for printing."""
    return "".join(map(str, tokenizer.convert_ids_to_tokens(list(prefix))))
