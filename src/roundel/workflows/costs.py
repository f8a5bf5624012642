"""What a run will take beside what its blocks take, measured or estimated before it begins."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from roundel.calibration.gather import for_sources, gather_calibration
from roundel.calibration.self_text import ROWS_AT_ONCE, sample_from_model
from roundel.calibration.tokens import TooLittleTextError
from roundel.engine.trial import Times, trial_rows, try_block
from roundel.model.source import SourceModel
from roundel.model.storage import InMemory
from roundel.recipe import Recipe
from roundel.system.progress import Progress
from roundel.workflows.request import ModelRequest
from roundel.workflows.run import Run

# Tokens by which the writing of calibration text is timed.
_WRITTEN = 32
# Bytes per second at which streams, blocks and the output are written and read back, on a common disk.
_DISK = 500e6


@dataclass(frozen=True)
class Costs:
    """What a run takes, by its samples and iterations.

    Attributes:
        times: of the blocks.
        spent: seconds until now, since the run began.
        text: seconds that calibration text of so many samples takes, where the model writes it.
        after: seconds behind the blocks: writing, checking, measuring.
        kept: bytes that are written behind each block, for each sample.
        available: samples that the data suffice for, if they end; None: any number.
        counted: samples that the sources give, if they say how many.
    """

    times: Times
    spent: float
    text: Callable[[int], float]
    after: float
    kept: float
    available: int | None = None
    counted: int | None = None

    def seconds(self, samples: int, iters: int) -> float:
        """Of a whole run."""
        kept = self.times.blocks * samples * self.kept / _DISK
        return self.spent + self.text(samples) + self.times.all(samples, iters) + kept + self.after

    def of(self, recipe: Recipe) -> float:
        """Of a whole run with samples of another length and batches of another size: time goes with the tokens."""
        rows, length = recipe.batch_size, recipe.seqlen
        ratio = rows * length / (self.times.rows * self.times.tokens)
        times = replace(
            self.times, batch=self.times.batch * ratio, step=self.times.step * ratio, rows=rows, tokens=length
        )
        text = self.text(recipe.nsamples) * (recipe.seqlen / self.times.tokens - 1)
        return text + replace(self, times=times).seconds(recipe.nsamples, recipe.iters)


def measure_costs(run: Run, recipe: Recipe, most: int, after: Callable[[Times], float]) -> Costs:
    """Read the data, try one block, and time the writing of text.

    Args:
        run: before its work; it is as it was afterwards.
        recipe: the run's, with the length of samples and the batch that are to be used.
        most: samples that are of any use.
        after: seconds of what follows the blocks.
    """
    source, available, counted = run.source, None, None
    text: Callable[[int], float] = _no_text
    if run.writes_text:
        text = _timed_text(run.request, source, recipe)
        vocabulary = source.model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(recipe.seed)
        tokens = torch.randint(vocabulary, (trial_rows(recipe), recipe.seqlen), generator=generator)
    else:
        tokens, available, counted = _read(run.request, source, recipe, most)
    block, name = run.stack.blocks[0], run.stack.block_name(0)
    restore = source.storage.saved(block, name) if isinstance(source.storage, InMemory) else _nothing
    try:
        times = try_block(run.job_of(recipe, tokens)).times
    finally:
        restore()
    times = replace(times, batch=times.batch / run.ranks.size, step=times.step / run.ranks.size)
    hidden = getattr(source.model.config.get_text_config(), "hidden_size", 0)
    streams = recipe.needs_original_stream + recipe.needs_quantized_stream
    kept = streams * recipe.seqlen * hidden * 4
    spent = time.perf_counter() - run.began
    return Costs(times, spent, text, after(times), kept, available, counted)


def _nothing() -> None:
    """Blocks are read from files: the next one reads them again."""


def _no_text(samples: int) -> float:
    return 0.0


def _read(
    request: ModelRequest, source: SourceModel, recipe: Recipe, most: int
) -> tuple[torch.Tensor, int | None, int | None]:
    """The first rows of the data, how many there are, and how many the sources say that they give."""
    wanted = for_sources(recipe.model_copy(update={"nsamples": most}), request.calibration)
    counted = None if wanted.nsamples == most else wanted.nsamples

    def read(samples: int) -> torch.Tensor:
        options = wanted.model_copy(update={"nsamples": samples})
        return gather_calibration(
            request.calibration, source.model, source.tokenizer, options, Progress()
        ).tokens

    try:
        return read(wanted.nsamples), counted, counted
    except TooLittleTextError as error:
        if counted is not None or not error.enough:
            raise
        return read(error.enough), error.enough, None


def _timed_text(request: ModelRequest, source: SourceModel, recipe: Recipe) -> Callable[[int], float]:
    began = time.perf_counter()
    model: Any = source.model if isinstance(source.storage, InMemory) else request.open().model
    opened = time.perf_counter() - began
    options = recipe.model_copy(update={"nsamples": ROWS_AT_ONCE, "seqlen": _WRITTEN})
    began = time.perf_counter()
    sample_from_model(model, source.tokenizer, options)
    each = (time.perf_counter() - began) / _WRITTEN

    def seconds(samples: int) -> float:
        return opened + each * recipe.seqlen * -(-samples // ROWS_AT_ONCE)

    return seconds
