"""A conversation with a model: turn by turn, through its tokenizer's chat template.

Every turn renders the conversation anew. As far as the rendered tokens are those that the model has read and made so
far, its KV cache is kept, and only the rest is read: mostly the new turn alone, more where a template leaves out of
earlier answers what it likes, or where an answer's text is split into other tokens than the model made. Where a layer
keeps no keys and values but a state, which cannot go back, all is read again: slower, and the same text.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from roundel.errors import ModelError
from roundel.evaluation.predict import check_reach
from roundel.model.prompt import as_chat, has_template
from roundel.model.source import SourceModel, positions
from roundel.model.streamer import Speed, Streamer
from roundel.workflows.generate import continued, needed_tokenizer


def hold_chat(
    source: SourceModel,
    turns: Iterable[str],
    max_new_tokens: int,
    *,
    on_text: Callable[[str], object] | None,
    on_end: Callable[[Speed], object] | None,
) -> list[dict[str, str]]:
    """Answer what a user says, turn by turn, greedily.

    Args:
        source: an open model.
        turns: what the user says; the next is asked for when the last is answered. Empty ones are passed over.
        max_new_tokens: at most so many in an answer.
        on_text: gets the answers piece by piece, as they come.
        on_end: gets how long an answer took, after each.

    Returns:
        The conversation: `role` (`user`, `assistant`) and `content` of every turn.

    Raises:
        ModelError: there is no tokenizer, or no chat template; the template does not take a turn, or the model does not
            reach so far.
    """
    tokenizer = needed_tokenizer(source)
    if not has_template(tokenizer):
        raise ModelError(
            f"the tokenizer of {source.name} has no chat template: a model that was made for chats is expected; "
            "leave --chat out (roundel.generate) to continue a text"
        )
    said: list[dict[str, str]] = []
    memory = _Memory()
    for turn in turns:
        if not turn.strip():
            continue
        said.append({"role": "user", "content": turn})
        inputs = as_chat(tokenizer, said)
        count = _room(source.model, inputs["input_ids"], max_new_tokens)
        past, known = memory.of(inputs["input_ids"])
        streamer = Streamer(tokenizer, on_text, known=known)
        memory.keep(continued(source.model, inputs, count, streamer, past))
        said.append({"role": "assistant", "content": streamer.text})
        if on_end is not None:
            on_end(streamer.speed)
    return said


def _room(model: Any, ids: torch.Tensor, wanted: int) -> int:
    """How many tokens the answer may have: as many as are wanted, or as the model reaches."""
    limit = positions(model)
    if limit is None:
        check_reach(model, ids)
        return wanted
    if ids.shape[1] >= limit:
        raise ModelError(
            f"the conversation has {ids.shape[1]} tokens, and {type(model).__name__} reaches {limit}: it is at its "
            "end; a new one should begin"
        )
    check_reach(model, ids)
    return min(wanted, limit - ids.shape[1])


class _Memory:
    """The KV cache of what was said, and the tokens in it."""

    def __init__(self) -> None:
        self._past: Any = None
        self._ids: list[int] = []

    def of(self, ids: torch.Tensor) -> tuple[Any, int]:
        """A cache, and of how many of the first tokens of `ids [1, S]` it is; (None, 0) where all is to be read."""
        kinds = {type(layer) for layer in getattr(self._past, "layers", [])}
        if not kinds or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            return None, 0  # some layer keeps a state
        same = _common(
            self._ids, ids[0, :-1].tolist()
        )  # the last token is read in any case: its logits are wanted
        surplus = len(self._ids) - same
        if same == 0 or (surplus and kinds != {DynamicLayer}):
            return None, 0  # a window that has moved on cannot go back
        if surplus:
            self._past.crop(-surplus)
        return self._past, same

    def keep(self, found: Any) -> None:
        """What `continued` gave; the last token was made, and not read."""
        self._past = getattr(found, "past_key_values", None)
        self._ids = found.sequences[0, :-1].tolist()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two lists begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
