"""One block tried: how long a run will take, and how much memory a block really comes to.

The first block is quantized on three batches with a few iterations, by the same code as in the run. The time of a
batch and of an iteration is the median of those seen; what is left of the block's time (the search for grids,
factorizations, rounding) does not depend on how many there are.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.engine.block import BlockQuantizer
from roundel.engine.job import Job, make_runner
from roundel.engine.plan import Plan, PlanPart
from roundel.engine.streams import MemoryStream, Streams
from roundel.recipe import Recipe, Work
from roundel.system.memory import peak_memory
from roundel.system.progress import Progress
from roundel.system.ranks import ALONE

_BATCHES = 3
_ITERATIONS = 6
# What is not known to be steadier is taken to vary so much.
_LEAST_SPREAD = 0.15
# In the time of a pass forwards: one matrix product, and two for the gradients.
_FORWARD_AND_BACKWARD = 3.0


@dataclass(frozen=True)
class Times:
    """What quantizing the blocks of a model takes, by what one of them took.

    Attributes:
        fixed: seconds of a block that no number of samples or iterations changes: the search for grids,
            factorizations, rounding.
        batch: seconds of a batch in one pass through a block.
        passes: that a block makes over the calibration data.
        step: seconds of an iteration.
        blocks: how many blocks of this size the model has; time goes with their weights.
        rows: samples of a batch.
        minibatch: samples of an iteration.
        tokens: of a sample.
        weights: of the block.
    """

    fixed: float
    batch: float
    passes: float
    step: float
    blocks: float
    rows: int
    minibatch: int
    tokens: int
    weights: int

    def block(self, work: Work) -> float:
        """Seconds of one block."""
        if not self.tokens:
            return self.fixed
        batches = work.samples * work.seqlen / (self.rows * self.tokens)
        return self.fixed + self.passes * self.batch * batches + self.step_of(work) * work.iters

    def step_of(self, work: Work) -> float:
        """Seconds of an iteration: forwards and backwards go with the tokens, the rest with the weights."""
        here, there = self.minibatch * self.tokens, work.minibatch * work.seqlen
        passes = min(self.step, _FORWARD_AND_BACKWARD * self.batch * self.minibatch / self.rows)
        return self.step + passes * (there / here - 1)

    def all(self, work: Work) -> float:
        """Seconds of all blocks."""
        return self.blocks * self.block(work)

    def forward(self, weights: int, tokens: int) -> float:
        """Seconds that so many tokens take through Linears of so many weights; 0 where no block was run on any."""
        products = self.rows * self.tokens * self.weights
        return self.batch / products * weights * tokens if products else 0.0


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Attributes:
        times: of one block, from which all others follow.
        seconds: of the whole run, estimated.
        spread: by which share it may be wrong, judged by how much batches and iterations differed.
        block_seconds: of one block in the run, estimated.
        peak: of main memory in the run, from the measured peak of the trial and the streams' exact bytes.
    """

    times: Times
    seconds: float
    spread: float
    block_seconds: float
    peak: int


class _Stopwatch(Progress):
    """Times batches and iterations by the signs of life that they give.

    Attributes:
        passed: how many batches began.
        batches: seconds between two that followed each other (or between the last of a pass and the first of the next).
        steps: seconds of every iteration.
    """

    def __init__(self) -> None:
        self.passed = 0
        self.batches: list[float] = []
        self.steps: list[float] = []
        self._batch_began: float | None = None
        self._step_began = 0.0
        self._stepped = False

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Progress]:
        """A block's iterations begin."""
        self._step_began = time.perf_counter()
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """An iteration is done."""
        now = time.perf_counter()
        self.steps.append(now - self._step_began)
        self._step_began, self._stepped = now, True

    def check_stop(self) -> None:
        """A batch begins; or an iteration has ended."""
        if self._stepped:
            self._stepped, self._batch_began = False, None
            return
        now = time.perf_counter()
        if self._batch_began is not None:
            self.batches.append(now - self._batch_began)
        self._batch_began = now
        self.passed += 1

    @property
    def batch(self) -> float:
        """Of one batch: between two passes lies other work, so the shorter half counts."""
        shorter = sorted(self.batches)[: max(1, len(self.batches) // 2)]
        return statistics.median(shorter) if shorter else 0.0

    @property
    def step(self) -> float:
        """Of one iteration."""
        return statistics.median(self.steps) if self.steps else 0.0


@dataclass(frozen=True)
class Tried:
    """One block quantized on a little data.

    Attributes:
        times: what it took.
        spread: by which share its iterations differed.
        peak: bytes of main memory.
        rows: samples that it was quantized on.
    """

    times: Times
    spread: float
    peak: int
    rows: int


def run_trial(job: Job, plan: Plan, tried: Tried | None = None) -> Trial:
    """What a run will take, by its first block quantized on a little data; the model is left as it was.

    Args:
        job: the run's.
        plan: its bytes.
        tried: the block, where it was tried already in batches of the same size.
    """
    tried = tried or try_block(job)
    samples = 0 if job.tokens is None else len(job.tokens)
    work = replace(Work.of(job.recipe), samples=samples)
    streams = plan.memory.get(PlanPart.STREAMS, 0) * max(0.0, 1 - tried.rows / samples) if samples else 0.0
    return Trial(
        times=tried.times,
        seconds=tried.times.all(work),
        spread=tried.spread,
        block_seconds=tried.times.block(work),
        peak=max(plan.sampling, plan.reading, plan.outside, plan.checking, int(tried.peak + streams)),
    )


def trial_rows(recipe: Recipe) -> int:
    """Samples that a block is tried on."""
    return _BATCHES * recipe.batch_size


def try_block(job: Job) -> Tried:
    """Quantize the first block on the first samples; the model is left as it was, without that block in memory."""
    recipe = job.recipe.model_copy(update={"iters": min(job.recipe.iters, _ITERATIONS)})
    rows = None if job.tokens is None else job.tokens[: trial_rows(recipe)]
    block, name = job.stack.blocks[0], job.stack.block_name(0)
    job.storage.load(block, name)
    with ExitStack() as undo:
        undo.callback(job.storage.release, block, name)
        undo.callback(job.storage.saved(block, name))
        watch, activations = _Stopwatch(), None
        if recipe.activations:
            activations = ActivationQuantizer(job.model, job.coverage.fed, recipe.activations)
            undo.callback(activations.detach)
        runner = streams = None
        if rows is not None:
            runner = make_runner(job, rows, activations)
            with job.storage.around(job.model, job.stack):
                for count in {1, *(len(part) for part in rows.split(recipe.batch_size))}:
                    runner.prepare(count)
                first = MemoryStream(torch.cat(list(runner.first_inputs(recipe.batch_size))).float())
            original, quantized = recipe.needs_original_stream, recipe.needs_quantized_stream
            streams = Streams(first if original else None, first if quantized else None)
        tried = replace(
            job,
            recipe=recipe,
            progress=watch,
            home=replace(job.home, on_disk=False),
            journal=None,
            activations=activations,
            ranks=ALONE,
        )
        worker = BlockQuantizer(tried, runner)
        began = time.perf_counter()
        worker.quantize(0, streams)
        return _tried(job, watch, time.perf_counter() - began, peak_memory(), rows)


def _tried(job: Job, watch: _Stopwatch, seconds: float, peak: int, rows: torch.Tensor | None) -> Tried:
    # Blocks may differ, in their number of experts for example: time goes with their weights.
    first, *others = (sum(p.numel() for p in block.parameters()) for block in job.stack.blocks)
    count, tokens = (0, 0) if rows is None else rows.shape
    size = job.recipe.batch_size
    times = Times(
        fixed=max(0.0, seconds - watch.passed * watch.batch - sum(watch.steps)),
        batch=watch.batch,
        passes=watch.passed * size / count if count else 0.0,
        step=watch.step if job.recipe.tuned else 0.0,
        blocks=1 + sum(others) / first,
        rows=size,
        minibatch=Work.of(job.recipe).minibatch,
        tokens=tokens,
        weights=first,
    )
    spread = _LEAST_SPREAD
    if len(watch.steps) > 2:
        quartiles = statistics.quantiles(watch.steps[1:], n=4)
        spread = max(spread, (quartiles[2] - quartiles[0]) / watch.step)
    return Tried(times, spread, peak, count)
