"""Text of a model, quantized or not."""

from typing import Any

import torch

from roundel.errors import ModelError
from roundel.evaluation.predict import check_reach
from roundel.model.prompt import as_chat, as_text
from roundel.model.source import SourceModel
from roundel.model.text_path import text_model


def generate_text(source: SourceModel, prompt: str, max_new_tokens: int, *, raw: bool) -> str:
    """Answer a prompt where the tokenizer has a chat template, else (or raw) continue it; greedily.

    Raises:
        ModelError: there is no tokenizer, the model does not reach so far, or there is no prompt.
    """
    tokenizer: Any = source.tokenizer
    if tokenizer is None:
        raise ModelError(f"{source.name} comes without a tokenizer: one is expected to read the prompt")
    chat = not raw and bool(getattr(tokenizer, "chat_template", None))
    inputs = as_chat(tokenizer, prompt) if chat else as_text(tokenizer, prompt)
    check_reach(source.model, inputs["input_ids"], max_new_tokens)
    device = next(source.model.parameters()).device
    with torch.no_grad():
        ids = text_model(source.model).generate(
            **inputs.to(device), do_sample=False, max_new_tokens=max_new_tokens
        )
    new = ids[0, inputs["input_ids"].shape[1] if chat else 0 :]
    return str(tokenizer.decode(new, skip_special_tokens=True))
