"""One block tried: how long a run will take, and how much memory a block really comes to.

The first block is quantized on three batches with a few iterations, by the same code as in the run. The time of a
batch and of an iteration is the median of those seen; what is left of the block's time (the search for grids,
factorizations, rounding) does not depend on how many there are.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.engine.block import BlockQuantizer
from roundel.engine.job import Job, make_runner
from roundel.engine.plan import Plan, PlanPart
from roundel.engine.streams import MemoryStream, Streams
from roundel.system.memory import peak_memory
from roundel.system.progress import Progress
from roundel.system.ranks import ALONE

_BATCHES = 3
_ITERATIONS = 6
# What is not known to be steadier is taken to vary so much.
_LEAST_SPREAD = 0.15


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Attributes:
        seconds: of the whole run, estimated.
        spread: by which share it may be wrong, judged by how much batches and iterations differed.
        block_seconds: of one block in the run, estimated.
        peak: of main memory in the run, from the measured peak of the trial and the streams' exact bytes.
    """

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


def run_trial(job: Job, plan: Plan) -> Trial:
    """Quantize the first block on a little data; the model is left without it.

    Args:
        job: the run's.
        plan: its bytes.
    """
    recipe = job.recipe.model_copy(update={"iters": min(job.recipe.iters, _ITERATIONS)})
    rows = None if job.tokens is None else job.tokens[: _BATCHES * recipe.batch_size]
    watch = _Stopwatch()
    activations = None
    if recipe.activations:
        activations = ActivationQuantizer(job.model, job.coverage.fed, recipe.activations)
    runner = streams = None
    block, name = job.stack.blocks[0], job.stack.block_name(0)
    job.storage.load(block, name)
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
    seconds = time.perf_counter() - began
    peak = peak_memory()
    if activations is not None:
        activations.detach()
    job.storage.release(block, name)
    return _extrapolate(job, plan, watch, seconds, peak, 0 if rows is None else len(rows))


def _extrapolate(job: Job, plan: Plan, watch: _Stopwatch, seconds: float, peak: int, rows: int) -> Trial:
    fixed = max(0.0, seconds - watch.passed * watch.batch - sum(watch.steps))
    block = fixed + (job.recipe.iters * watch.step if job.recipe.tuned else 0.0)
    streams = 0.0
    if job.tokens is not None:
        share = len(job.tokens) / rows
        block += watch.passed * watch.batch * share
        streams = plan.memory.get(PlanPart.STREAMS, 0) * max(0.0, 1 - 1 / share)
    spread = _LEAST_SPREAD
    if len(watch.steps) > 2:
        quartiles = statistics.quantiles(watch.steps[1:], n=4)
        spread = max(spread, (quartiles[2] - quartiles[0]) / watch.step)
    # Blocks may differ, in their number of experts for example: time goes with their weights.
    first, *others = (sum(p.numel() for p in block.parameters()) for block in job.stack.blocks)
    return Trial(
        seconds=block * (1 + sum(others) / first),
        spread=spread,
        block_seconds=block,
        peak=max(plan.sampling, plan.reading, plan.outside, plan.checking, int(peak + streams)),
    )
