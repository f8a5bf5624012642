"""The integers of a block's Linears before any tuning: rounded to nearest, or with error feedback (GPTQ, SpQR)."""

from collections.abc import Callable, Iterator

import torch

from roundel.engine.job import Job
from roundel.engine.moments import Hessian
from roundel.engine.observations import Observations, Observer, ReferencePass
from roundel.engine.observers import InputHessians, InputSizes, InputStatistics, in_stages
from roundel.engine.split import split
from roundel.engine.streams import Streams
from roundel.engine.target import Target, round_by_hessian, round_to_nearest
from roundel.methods.cholesky import SharedFactor
from roundel.model.linears import LinearView


class Starts:
    """Rounds the Linears of a block.

    Args:
        observer: runs blocks where Hessians of their inputs are needed.
        seen: what was observed of these Linears; the tokens and sizes of Hessians' passes are added.
    """

    def __init__(self, observer: Observer, seen: Observations) -> None:
        self.observer, self.seen, self.job = observer, seen, observer.job

    def to_nearest(self, views: list[LinearView], statistics: InputStatistics | None) -> Iterator[Target]:
        """On grids that span the weights, or are searched with statistics of the inputs."""
        schemes, fit = self.job.coverage.schemes, self.job.recipe.grid_fit

        def make(view: LinearView) -> Target:
            diagonal = statistics.mean_of(view.name) if statistics else None
            return round_to_nearest(view, schemes[view.name], fit, diagonal)

        return self._split(views, make)

    def by_block_hessians(
        self, index: int, views: list[LinearView], streams: Streams, reference: ReferencePass | None
    ) -> Iterator[Target]:
        """Round a block with error feedback, by the Hessians of a reference pass or of passes of its own.

        One pass serves all Linears; several where Hessians do not fit into memory together, or where each Linear is to
        see inputs that passed the quantized Linears before it.
        """
        passes = self.observer.passes
        if reference is not None and reference.hessians is not None and shares_hessians(self.job, streams):
            yield from self.by_hessians(views, reference.hessians, Hessian.mean)
            return
        sharing = self.observer.sharing(index, views, streams.inputs)
        for stage in in_stages(sharing, one_by_one=self.job.recipe.true_sequential):
            # Where there was a reference pass, the sizes are known.
            leaders = [views[0] for views in stage] if reference is None else []
            yield from self.by_stage(views, stage, leaders, lambda: passes.feed(index, streams.inputs))

    def by_stage(
        self,
        views: list[LinearView],
        stage: list[list[LinearView]],
        leaders: list[LinearView],
        feed: Callable[[], object],
    ) -> Iterator[Target]:
        """Round Linears by Hessians that one pass collects.

        Args:
            views: those that may be rounded.
            stage: those that are, by the input that they share.
            leaders: the first of each, where the sizes of their inputs are not known yet; else none.
            feed: runs what they are in on all calibration data.
        """
        with (
            InputHessians(stage) as hessians,
            InputSizes(leaders) as sizes,
            self.observer.passes.activations_quantized(),
        ):
            feed()
        hessians.reduce(self.job.ranks)
        self.seen.add_sizes(sizes, self.job.ranks, stage if leaders else [])
        yield from self.by_hessians(views, hessians)

    def by_hessians(
        self,
        views: list[LinearView],
        hessians: InputHessians,
        mean: Callable[[Hessian], torch.Tensor] = Hessian.take_mean,
    ) -> Iterator[Target]:
        """Round those Linears whose Hessians these are. The result is in the modules then: a later pass sees it."""
        by_name = {view.name: view for view in views}
        schemes, recipe = self.job.coverage.schemes, self.job.recipe
        for sharing, hessian in zip(hessians.sharing, hessians.hessians, strict=True):
            moments = mean(hessian) if hessian.tokens else None
            self.seen.tokens |= {view.name: hessian.tokens for view in sharing}

            def make(
                view: LinearView,
                hessian: Hessian = hessian,
                moments: torch.Tensor | None = moments,
                shared: SharedFactor = SharedFactor(),
            ) -> Target:
                return round_by_hessian(view, schemes[view.name], hessian, moments, recipe, shared)

            for target in self._split([by_name[view.name] for view in sharing], make):
                target.view.write(target.rounded.dequantize())
                yield target

    def _split(self, views: list[LinearView], make: Callable[[LinearView], Target]) -> Iterator[Target]:
        return split(views, make, self.job.coverage.schemes, self.job.ranks, bases=self.job.recipe.tuned)


def shares_hessians(job: Job, streams: Streams) -> bool:
    """Whether the Hessians by which a block is rounded are those of the original stream, before any rounding."""
    recipe = job.recipe
    plain = not recipe.true_sequential and not recipe.activations
    return recipe.hessian_guided and plain and streams.inputs is streams.original
