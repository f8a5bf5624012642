"""Calibration without data: text that the model writes itself.

Every row is sampled at temperature 1 from the model's own distribution, all rows in batches. It starts from what the
tokenizer puts in front of a text, and begins with it (prefix.py). Where that is nothing, it starts from the begin- or
end-of-text token, which is no part of the row then: no prompt of such a model begins with it.

How a model is served is another matter: its generation config may cut the distribution (`min_p`, penalties, suppressed
tokens), search instead of sampling (beams), stop early or answer with other rows than were asked for. `generate` fills
from it whatever it is not told, and new keys come with every release, so it is put aside, not overridden key by key.
Rows run on over the end of a text, as packed documents do: no token ends them.

No file, no network, and the text is in whatever language and domain the model was trained on. On a held-out corpus it
calibrates better than the only English that every machine has, Python's reference manual (docs/calibration.md has the
measurement).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from roundel.calibration.options import CalibrationOptions
from roundel.calibration.prefix import text_prefix
from roundel.errors import CalibrationError, NonFiniteError
from roundel.model.text_path import text_model

# Rows that are written together.
ROWS_AT_ONCE = 32


def any_tokens(model: Any, tokenizer: Any | None, options: CalibrationOptions) -> torch.Tensor:
    """`[nsamples, seqlen]` ids in the place of text that the model would write: time and memory are the same for any.

    Args:
        model: its tensors may be absent.
        tokenizer, options: as for `sample_from_model`.

    Raises:
        CalibrationError: as `sample_from_model` would.
    """
    _beginning(model, tokenizer)
    vocabulary = len(text_model(model).get_input_embeddings().weight)
    generator = torch.Generator().manual_seed(options.seed)
    return torch.randint(vocabulary, (options.nsamples, options.seqlen), generator=generator)


@torch.no_grad()
def sample_from_model(
    model: Any,
    tokenizer: Any | None,
    options: CalibrationOptions,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> torch.Tensor:
    """Sample `[nsamples, seqlen]` int64 token ids from the model.

    The global random state is restored afterwards, and the model's generation config.

    Args:
        model: a causal language model, in memory.
        tokenizer: the model's; None: rows begin with the start token of its config.
        options: nsamples, seqlen, seed, add_bos.
        on_rows: given every batch.

    Raises:
        CalibrationError: no start token is known.
        NonFiniteError: the model predicts NaN or infinity.
    """
    prefix, start = _beginning(model, tokenizer)
    left_out = 0 if prefix and options.add_bos else len(start)
    sampled_tokens = options.seqlen + left_out - len(start)
    device = next(model.parameters()).device
    writer = text_model(model)
    how = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=start[0],
        max_new_tokens=sampled_tokens,
    )
    parts = []
    with torch.random.fork_rng(), _unconfigured(writer):
        torch.manual_seed(options.seed)
        for first in range(0, options.nsamples, ROWS_AT_ONCE):
            rows = min(ROWS_AT_ONCE, options.nsamples - first)
            prompt = torch.tensor(start, device=device).repeat(rows, 1)
            try:
                # The class's: a folder with code of its own may have put another function in its place.
                sampled = type(writer).generate(
                    writer, prompt, attention_mask=torch.ones_like(prompt), generation_config=how
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise NonFiniteError(
                    "the model cannot write its calibration text: its predictions are NaN or infinite; finite ones are "
                    "expected. Take an earlier checkpoint or another model, or give a text (--calibration FILE)"
                ) from error
            parts.append(sampled[:, left_out:].cpu())
            on_rows(rows)
    return torch.cat(parts)


@contextmanager
def _unconfigured(model: Any) -> Iterator[None]:
    """The model with an empty generation config; its own again afterwards."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _beginning(model: Any, tokenizer: Any | None) -> tuple[list[int], list[int]]:
    """What rows begin with, and what their writing starts from."""
    prefix = [_start_token(model, None)] if tokenizer is None else text_prefix(tokenizer)
    return prefix, prefix or [_start_token(model, tokenizer)]


def _start_token(model: Any, tokenizer: Any | None) -> int:
    for holder in (tokenizer, model.config):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(holder, name, None)
            if isinstance(token, list):
                token = token[0]
            if token is not None:
                return int(token)
    raise CalibrationError(
        "neither tokenizer nor config names a begin- or end-of-text token to start sampling from: "
        "give calibration data (--calibration FILE)"
    )
