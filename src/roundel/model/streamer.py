"""Text as it comes, token by token, and how fast it came.

`generate` of transformers hands a streamer the prompt before it reads it, and then every token. A token is no piece of
text: a character of several bytes may be spread over some tokens, and what a tokenizer puts between words depends on
the word before. So all new tokens are decoded each time, and what that adds to the text before is said, unless it ends
within a character. What was said cannot be taken back: the pieces together are the text.

The rejected alternative is transformers' own `TextStreamer`. It waits for the end of a word, and it forgets at every
line's end what came before, after which tokenizers with SentencePiece's spaces leave one out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.generation.streamers import BaseStreamer

# What tokenizers decode the beginning of a character to.
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Speed:
    """How long a prompt and what followed it took.

    Attributes:
        prompt_tokens: tokens that were read.
        prompt_seconds: until the first new token.
        new_tokens: tokens that were made, the first one counted.
        new_seconds: from the first new token to the last.
    """

    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    new_seconds: float

    @property
    def steps(self) -> int:
        """New tokens that were made in `new_seconds`: the first came with the prompt."""
        return max(0, self.new_tokens - 1)


class Streamer(BaseStreamer):  # type: ignore[misc]
    """Says the text of one `generate` as it comes.

    Args:
        tokenizer: that knows the tokens.
        on_text: gets every piece; None keeps them.
        with_prompt: the prompt is part of the text.
        known: so many tokens of the prompt are in the KV cache already, and are not read again.
    """

    def __init__(
        self,
        tokenizer: Any,
        on_text: Callable[[str], object] | None = None,
        *,
        with_prompt: bool = False,
        known: int = 0,
    ) -> None:
        self._tokenizer, self._on_text, self._with_prompt = tokenizer, on_text, with_prompt
        self._prompt_tokens, self._new_tokens = -known, 0
        self._begun = self._first = self._last = 0.0
        self._ids: list[int] = []
        self.text = ""

    @property
    def speed(self) -> Speed:
        """So far."""
        return Speed(
            self._prompt_tokens, self._first - self._begun, self._new_tokens, self._last - self._first
        )

    def put(self, value: Any) -> None:
        """The prompt `[1, S]`, or the next token `[1]`."""
        now, ids = time.perf_counter(), value.reshape(-1).tolist()
        if not self._begun:
            self._prompt_tokens += len(ids)
            if self._with_prompt:
                self._ids += ids
                self._say()
            self._begun = time.perf_counter()
            return
        if not self._new_tokens:
            self._first = now
        self._last = now
        self._new_tokens += len(ids)
        self._ids += ids
        self._say()

    def end(self) -> None:
        """No token follows."""
        self._say(last=True)

    def _say(self, *, last: bool = False) -> None:
        # Cleaning would take back a space that was said.
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text.endswith(_BROKEN) and not last:
            return
        piece = text[len(self.text) :]
        self.text += piece
        if piece and self._on_text is not None:
            self._on_text(piece)
