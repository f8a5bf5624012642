"""From what the user gave to calibration tokens, with words and a fingerprint for the manifest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch

from roundel.calibration.options import CalibrationOptions
from roundel.calibration.self_text import sample_from_model
from roundel.calibration.texts import Document, as_document, is_ids, read_documents
from roundel.calibration.tokens import check_ids, pack_documents
from roundel.errors import CalibrationError
from roundel.model.source import positions
from roundel.model.text_path import text_model
from roundel.progress import Progress

SELF_WORDS = "text sampled from the model itself"

CalibrationSource = str | Sequence[Any] | torch.Tensor


@dataclass(frozen=True)
class Calibration:
    """Calibration tokens.

    Attributes:
        tokens: `[nsamples, seqlen]` int64.
        source: where they come from, in words.
        fingerprint: hash of the tokens.
    """

    tokens: torch.Tensor
    source: str
    fingerprint: str


def gather_calibration(
    source: CalibrationSource | None,
    model: Any,
    tokenizer: Any | None,
    options: CalibrationOptions,
    progress: Progress,
    author: Callable[[], Any] | None = None,
) -> Calibration:
    """Calibration tokens for a model.

    Args:
        source: what the caller gave (file, name, documents, tensor of ids); None: what the options say.
        model: the original model; its tensors may be absent.
        tokenizer: the model's, or None.
        options: nsamples, seqlen, seed, add_bos, chat_template, calibration.
        progress: told of sampling.
        author: opens the original model with all its tensors, to write the text itself for `self`; None: `model` is.

    Raises:
        CalibrationError: unreadable, too short, rows longer than the model's positions, or ids that the model
            does not know.
    """
    limit = positions(model)
    if limit is not None and options.seqlen > limit:
        raise CalibrationError(
            f"seqlen {options.seqlen} exceeds the model's {limit} positions: set seqlen to {limit} or less"
        )
    source = options.calibration if source is None else source
    if source is None:
        progress.say(
            "No calibration data given: the model writes its own (deterministic, offline). "
            "Text like that of your use is better: --calibration FILE"
        )
        source = "self"
    if isinstance(source, torch.Tensor):
        tokens, words = _rows_of(source, options), "token ids given in memory"
    elif isinstance(source, str):
        if source == "self":
            with progress.stage("Sampling calibration text", options.nsamples):
                whole = author() if author else model

                def rows_done(rows: int) -> None:
                    progress.advance(rows)
                    progress.check_stop()

                tokens = sample_from_model(whole, tokenizer, options, rows_done)
            words = SELF_WORDS
        else:
            tokens, words = pack_documents(read_documents(source), tokenizer, options), source
    else:
        documents: list[Document] = [as_document(row, f"document {n}") for n, row in enumerate(source)]
        tokens, words = pack_documents(documents, tokenizer, options), "documents given in memory"
    check_ids(tokens, text_model(model).get_input_embeddings().weight.shape[0])
    digest = blake2b(tokens.numpy().tobytes(), digest_size=16).hexdigest()
    return Calibration(tokens, words, digest)


def _rows_of(tokens: torch.Tensor, options: CalibrationOptions) -> torch.Tensor:
    if tokens.ndim != 2 or not is_ids(tokens):
        raise CalibrationError(
            f"the calibration tensor is {tuple(tokens.shape)} {tokens.dtype}; integer ids [samples, tokens] are wanted"
        )
    return pack_documents(tokens.tolist(), None, options)
