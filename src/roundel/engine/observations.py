"""What is observed of the inputs of a block's Linears: by the pass that makes the targets, and by later ones."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from roundel.engine.block_pass import BlockPass
from roundel.engine.observers import (
    HESSIAN_BYTES,
    InputHessians,
    InputSizes,
    InputStatistics,
    TokenCounts,
    hessian_bytes,
    sharing_inputs,
)
from roundel.engine.ranges import static_grids
from roundel.engine.smoothing import Smoothing, smooth_block
from roundel.engine.streams import Stream
from roundel.errors import NonFiniteError
from roundel.model.linears import LinearView
from roundel.records.layer_stats import Heads
from roundel.system.devices import computing
from roundel.system.ranks import Ranks


@dataclass(frozen=True)
class ReferencePass:
    """What an unquantized block makes of the original stream, and what its Linears are fed with meanwhile.

    Attributes:
        outputs: the block's.
        tokens: that each of its Linears saw.
        sizes: max|x|, `[in]`, of the inputs of its Linears that will be quantized.
        statistics: of the inputs of its Linears, if they were collected.
        hessians: of the same inputs.
    """

    outputs: Stream
    tokens: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, torch.Tensor] = field(default_factory=dict)
    statistics: InputStatistics | None = None
    hessians: InputHessians | None = None


@dataclass
class Observations:
    """What was observed of a block's Linears, by full name, for decisions and for the report.

    Attributes:
        tokens: how many of the calibration data reached a Linear.
        sizes: max|x|, `[in]`, of its inputs.
        smoothing: what SmoothQuant did to it.
        heads: where attention heads are in its weight.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, torch.Tensor] = field(default_factory=dict)
    smoothing: dict[str, Smoothing] = field(default_factory=dict)
    heads: dict[str, Heads] = field(default_factory=dict)

    def add_reference(self, reference: ReferencePass) -> None:
        """Take over what a reference pass saw."""
        self.tokens |= reference.tokens
        self.sizes = dict(reference.sizes)

    def add_sizes(self, sizes: InputSizes, ranks: Ranks, sharing: Iterable[list[LinearView]]) -> None:
        """Take over sizes of inputs; Linears that share their input have those of the first of them."""
        sizes.reduce(ranks)
        largest = sizes.largest
        for views in sharing:
            if views[0].name in largest:
                self.sizes |= {view.name: largest[views[0].name] for view in views}


class Observer:
    """Runs blocks to observe the inputs of their Linears.

    Args:
        passes: runs the blocks of a job.
    """

    def __init__(self, passes: BlockPass) -> None:
        self.passes, self.job = passes, passes.job

    def prepared_reference(
        self, index: int, original: Stream, *, statistics: bool, hessians: bool
    ) -> ReferencePass:
        """A reference pass for several runs that quantize the same block; in float32 where it takes that.

        Args:
            index: of the block.
            original: what enters it.
            statistics: collect the second moments of its Linears' inputs.
            hessians: collect Hessians.

        Raises:
            NonFiniteError: NaN or infinity, in float32 too.
        """
        try:
            return self._prepared(index, original, statistics, hessians)
        except NonFiniteError:
            if self.passes.amp is None:
                raise
            with self.passes.in_float32():
                return self._prepared(index, original, statistics, hessians)

    def _prepared(self, index: int, original: Stream, statistics: bool, hessians: bool) -> ReferencePass:
        views = self.job.linears(index)
        with computing(self.job.stack.blocks[index], self.job.device):
            sharing = self.sharing(index, views, original) if hessians else []
            if hessian_bytes(sharing) > HESSIAN_BYTES:
                sharing = []  # everybody collects them in stages, then
            with InputHessians(sharing) as collected:
                reference = self.reference(index, original, views if statistics else [])
            collected.reduce(self.job.ranks)
        return replace(reference, hessians=collected if sharing else None)

    def reference(self, index: int, original: Stream, watched: list[LinearView]) -> ReferencePass:
        """Run an unquantized block on the original stream, with statistics of the inputs of the watched Linears."""
        with (
            InputStatistics(watched) as statistics,
            TokenCounts(self.job.stack.linears(index)) as counts,
            InputSizes(self.job.linears(index)) as sizes,
        ):
            outputs = self.passes.outputs("original", index, original)
        for observer in (statistics, counts, sizes):
            observer.reduce(self.job.ranks)
        return ReferencePass(outputs, counts.seen, sizes.largest, statistics if watched else None)

    def completed(
        self, reference: ReferencePass, index: int, original: Stream, watched: list[LinearView]
    ) -> ReferencePass:
        """A reference pass with what it lacks: statistics, and the sizes of inputs that smoothing has changed."""
        if reference.statistics is not None:
            watched = []
        smoothed = self.job.linears(index) if self.job.recipe.smooth is not None else []
        if not watched and not smoothed:
            return reference
        with InputStatistics(watched) as statistics, InputSizes(smoothed) as sizes:
            self.passes.feed(index, original)
        if watched:
            statistics.reduce(self.job.ranks)
            reference = replace(reference, statistics=statistics)
        if smoothed:
            sizes.reduce(self.job.ranks)
            reference = replace(reference, sizes=sizes.largest)
        return reference

    def sharing(self, index: int, views: list[LinearView], inputs: Stream) -> list[list[LinearView]]:
        """Linears by the input that they share, in the order of their first call."""
        sample = self.passes.sample(inputs)
        return sharing_inputs(lambda: self.passes.run(index, sample), views)

    def smooth(self, index: int, views: list[LinearView], inputs: Stream) -> dict[str, Smoothing]:
        """Smooth a block (SmoothQuant), in place; what became of every Linear, by name."""
        assert self.job.recipe.smooth is not None
        sample = self.passes.sample(inputs)
        return smooth_block(
            self.job.stack.blocks[index],
            views,
            lambda: self.passes.runner.run(index, sample),  # exact: no autocast
            lambda: self.passes.feed(index, inputs),
            self.job.recipe.smooth,
            self.job.ranks,
        )

    def fix_ranges(self, views: list[LinearView], feed: Callable[[], object]) -> None:
        """Find static ranges for the inputs of Linears; `feed` runs what they are in on all calibration data."""
        assert self.job.activations is not None
        self.job.activations.static |= static_grids(views, feed, self.job.recipe, self.job.ranks)
