"""Measuring one model, alone or against its original."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from roundel.activations.attach import attached
from roundel.errors import RecipeError
from roundel.evaluation.per_token import check_parquet, write_tokens
from roundel.evaluation.quality import Evaluation, summarize
from roundel.evaluation.tasks.results import to_plain
from roundel.workflows.evaluation_options import EvaluationOptions
from roundel.workflows.measuring import (
    ask_original,
    check_tasks,
    judge_conventions,
    measure_tasks,
    measure_texts,
    open_measured,
    read_texts,
)
from roundel.workflows.open import ModelOrPath, find_model


def evaluate_model(
    model: ModelOrPath,
    reference: ModelOrPath | None,
    options: EvaluationOptions,
    *,
    revision: str | None,
    tokenizer: Any | None,
    per_token: Path | None,
) -> Evaluation:
    """Measure a model on texts and tasks.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        reference: the original; None: there is none to compare with.
        options: texts, windows, and so on.
        revision: of the model, where it is a hub id.
        tokenizer: for a model in memory.
        per_token: parquet file to write, a row for each prediction.

    Raises:
        RoundelError: a model or a text cannot be read, or the logits are not finite.
    """
    if reference is None and (options.cache is not None or options.top_k is not None):
        raise RecipeError(
            "cache and top_k are for a reference's predictions: pass --reference, or leave them out"
        )
    if per_token is not None:
        if not options.texts:
            raise RecipeError("per_token writes the predictions of texts: name a text, or leave it out")
        check_parquet(per_token)
    ranks = options.ranks
    with ExitStack() as opened:
        with ranks.raise_together():
            found = find_model(model, revision, allow_pickle=options.allow_pickle, progress=options.progress)
            source = open_measured(found, tokenizer, options, opened)
            original = None
            if reference is not None:
                original = open_measured(reference, None, options, opened, as_original=True)
            reader = source.tokenizer or (original.tokenizer if original else None)
            both = [source, *([original] if original else [])]
            texts = read_texts(reader, both, options)
            check_tasks(reader, both, options)
            texts = judge_conventions(original or source, texts, options)
            asked = None if original is None else ask_original(original, options)
        measured = measure_texts(source, texts, asked, options)

        def on_tasks() -> list[dict[str, Any]]:
            theirs = None if original is None else measure_tasks(original, reader, options)
            return to_plain(measure_tasks(source, reader, options), theirs)

        if per_token is not None and ranks.first:
            write_tokens(per_token, texts, measured)
        quantizer = attached(source.model)
        return Evaluation(
            model=source.name,
            activations=quantizer.summary if quantizer else "",
            reference=original.name if original else None,
            texts=[summarize(t.name, t.convention, found) for t, found in zip(texts, measured, strict=True)],
            tasks=ranks.broadcast_object(on_tasks),
        )
