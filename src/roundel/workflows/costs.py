"""What a run will take beside what its blocks take, measured or estimated before it begins."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from roundel.calibration.gather import counted_samples, gather_calibration
from roundel.calibration.self_text import ROWS_AT_ONCE, any_tokens, sample_from_model
from roundel.calibration.tokens import TooLittleTextError
from roundel.engine.trial import Times, trial_rows, try_block
from roundel.evaluation.distribution import Full
from roundel.model.source import SourceModel
from roundel.model.storage import InMemory
from roundel.model.text_path import text_model
from roundel.recipe import Recipe, Work
from roundel.system.progress import Progress
from roundel.workflows.report import WINDOW, WINDOWS
from roundel.workflows.request import ModelRequest
from roundel.workflows.run import Run

# Tokens by which the writing of calibration text is timed.
_WRITTEN = 32
# Tokens by which the comparing of predictions is timed.
_COMPARED = 32
# Bytes per second at which streams, blocks and the output are written and read back, on a common disk.
_DISK = 500e6
# A pass in float32, in which the report measures, in the time of one in the type in which blocks multiply.
_IN_FLOAT32 = 3.0
_FLOAT = 4


@dataclass(frozen=True)
class Costs:
    """What a run takes, by its samples and iterations.

    Attributes:
        times: of the blocks.
        spent: seconds until now, since the run began.
        text: seconds that calibration text takes, where the model writes it.
        after: seconds behind the blocks: writing, checking, measuring.
        kept: bytes that are written behind each block, for each token.
        available: samples that the data suffice for, if they end; None: any number.
        counted: samples that the sources give, if they say how many.
    """

    times: Times
    spent: float
    text: Callable[[Work], float]
    after: float
    kept: float
    available: int | None = None
    counted: int | None = None

    def seconds(self, work: Work) -> float:
        """Of a whole run."""
        tokens = work.samples * work.seqlen
        kept = self.times.blocks * tokens * self.kept / _DISK
        return self.spent + self.text(work) + self.times.all(work) + kept + self.after


def costs_of(run: Run, times: Times, spent: float, *, measured: bool) -> Costs:
    """What a run takes beside its blocks.

    Args:
        run: before its work.
        times: of the blocks.
        spent: seconds until the work begins.
        measured: whether the result is measured for its report.
    """
    after = 0.0
    if measured:  # the model and the original, opened again
        weights, tokens = sum(parameter.numel() for parameter in run.model.parameters()), WINDOW * WINDOWS
        vocabulary = len(text_model(run.model).get_input_embeddings().weight)
        after = 2 * _IN_FLOAT32 * times.forward(weights, tokens) + tokens * _comparing(vocabulary)
    hidden = getattr(run.model.config.get_text_config(), "hidden_size", 0)
    streams = run.recipe.needs_original_stream + run.recipe.needs_quantized_stream
    text = _timed_text(run.request, run.source, run.recipe) if run.writes_text else _no_text
    return Costs(times, spent, text, after, streams * hidden * _FLOAT)


def _comparing(vocabulary: int) -> float:
    """Seconds for each token whose predictions are compared: long, where the vocabulary is large."""
    logits = torch.zeros(_COMPARED, vocabulary)
    began = time.perf_counter()
    Full(logits).compare(logits, torch.zeros(_COMPARED, dtype=torch.int64))
    return (time.perf_counter() - began) / _COMPARED


def measure_costs(run: Run, recipe: Recipe, most: int, *, measured: bool) -> Costs:
    """Read the data, try one block, and time the writing of text.

    Args:
        run: before its work; it is as it was afterwards, and has the block as it was tried.
        recipe: the run's, with the length of samples and the batch that are to be used.
        most: samples that are of any use.
        measured: whether the result is measured for its report.
    """
    source, available, counted = run.source, None, None
    if run.writes_text:
        few = recipe.model_copy(update={"nsamples": trial_rows(recipe)})
        tokens = any_tokens(source.model, source.tokenizer, few)
    else:
        tokens, available, counted = _read(run.request, source, recipe, most)
    run.tried = try_block(run.job_of(recipe, tokens))
    times = run.tried.times
    times = replace(times, batch=times.batch / run.ranks.size, step=times.step / run.ranks.size)
    known = costs_of(run, times, 0.0, measured=measured)
    return replace(known, spent=time.perf_counter() - run.began, available=available, counted=counted)


def _no_text(work: Work) -> float:
    return 0.0


def _read(
    request: ModelRequest, source: SourceModel, recipe: Recipe, most: int
) -> tuple[torch.Tensor, int | None, int | None]:
    """The first rows of the data, how many there are, and how many the sources say that they give."""
    counted = counted_samples(recipe, request.calibration)

    def read(samples: int) -> torch.Tensor:
        options = recipe.model_copy(update={"nsamples": samples})
        return gather_calibration(
            request.calibration, source.model, source.tokenizer, options, Progress()
        ).tokens

    try:
        return read(counted or most), counted, counted
    except TooLittleTextError as error:
        if counted is not None or not error.enough:
            raise
        return read(error.enough), error.enough, None


def _timed_text(request: ModelRequest, source: SourceModel, recipe: Recipe) -> Callable[[Work], float]:
    began = time.perf_counter()
    model: Any = source.model if isinstance(source.storage, InMemory) else request.open().model
    opened = time.perf_counter() - began
    options = recipe.model_copy(update={"nsamples": ROWS_AT_ONCE, "seqlen": _WRITTEN})
    began = time.perf_counter()
    sample_from_model(model, source.tokenizer, options)
    each = (time.perf_counter() - began) / _WRITTEN

    def seconds(work: Work) -> float:
        return opened + each * work.seqlen * -(-work.samples // ROWS_AT_ONCE)

    return seconds
