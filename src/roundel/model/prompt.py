"""A prompt as token ids: the beginning of a text, or what a user says in a chat."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from roundel.errors import ModelError
from roundel.formatting import first_line

_FAULTS = (TemplateError, ValueError, TypeError, LookupError, AttributeError)


def as_text(tokenizer: Any, prompt: str) -> Any:
    """`input_ids` and `attention_mask`, each int64 `[1, S]`, of the beginning of a text.

    Raises:
        ModelError: it has no tokens.
    """
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    if inputs["input_ids"].shape[1] == 0:
        raise ModelError("the prompt has no tokens: some text is expected")
    return inputs


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer can render a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def as_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> Any:
    """The same of a chat of which the last turn is a user's, and the answer is to come.

    Args:
        tokenizer: with a chat template.
        messages: `role` and `content` of each turn.

    Raises:
        ModelError: there is nothing in the last turn, or the tokenizer's chat template does not take it.
    """
    prompt = messages[-1]["content"]
    if not prompt.strip():
        raise ModelError("the prompt is empty: what a user says is expected")
    in_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    problem = ""
    for spelled in (messages, in_parts):  # templates read one or the other
        try:
            text = tokenizer.apply_chat_template(
                [dict(message) for message in spelled], tokenize=False, add_generation_prompt=True
            )
        except _FAULTS as error:
            problem = problem or first_line(error)
            continue
        if prompt.strip() in text:
            # The template writes the special tokens itself.
            return tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
        problem = problem or "it leaves out what the user says"
    raise ModelError(
        f"the chat template of the tokenizer does not take the prompt ({problem}): pass --raw (raw=True) to "
        "continue it as plain text"
    )
