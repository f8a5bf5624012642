"""Text of a model, quantized or not."""

from collections.abc import Callable
from typing import Any

import torch

from roundel.errors import ModelError
from roundel.evaluation.predict import check_reach
from roundel.model.prompt import as_chat, as_text, has_template
from roundel.model.source import SourceModel
from roundel.model.streamer import Speed, Streamer
from roundel.model.text_path import text_model


def generate_text(
    source: SourceModel,
    prompt: str,
    max_new_tokens: int,
    *,
    raw: bool,
    on_text: Callable[[str], object] | None,
    on_end: Callable[[Speed], object] | None,
) -> str:
    """Answer a prompt where the tokenizer has a chat template, else (or raw) continue it; greedily.

    Args:
        source: an open model.
        prompt: what a user says, or the beginning of a text.
        max_new_tokens: at most so many are added.
        raw: it is the beginning of a text, whatever the tokenizer has.
        on_text: gets the text piece by piece, as it comes.
        on_end: gets how long it took.

    Raises:
        ModelError: there is no tokenizer, the model does not reach so far, or there is no prompt.
    """
    tokenizer = needed_tokenizer(source)
    chat = not raw and has_template(tokenizer)
    inputs = as_chat(tokenizer, [{"role": "user", "content": prompt}]) if chat else as_text(tokenizer, prompt)
    check_reach(source.model, inputs["input_ids"], max_new_tokens)
    streamer = Streamer(tokenizer, on_text, with_prompt=not chat)
    continued(source.model, inputs, max_new_tokens, streamer)
    if on_end is not None:
        on_end(streamer.speed)
    return streamer.text


def needed_tokenizer(source: SourceModel) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: there is none.
    """
    if source.tokenizer is None:
        raise ModelError(f"{source.name} comes without a tokenizer: one is expected to read the prompt")
    return source.tokenizer


def continued(model: Any, inputs: Any, max_new_tokens: int, streamer: Streamer, past: Any = None) -> Any:
    """What transformers' `generate` gives, greedily: `sequences` `[1, S + new]` and `past_key_values`.

    Args:
        model: a causal language model.
        inputs: `input_ids` and `attention_mask`, each `[1, S]`.
        max_new_tokens: at most so many are added.
        streamer: hears prompt and tokens.
        past: KV cache of the beginning of `inputs`; None: all is read.
    """
    known = {} if past is None else {"past_key_values": past}
    with torch.no_grad():
        return text_model(model).generate(
            **inputs.to(next(model.parameters()).device),
            **known,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
            return_dict_in_generate=True,
        )
