"""What is quantized outside of the blocks, when all of them are done: the output head and the input embedding.

Nothing follows the head that a gradient could come from but the logits themselves, whose squared error is

    sum_t |(W^ - W) x_t|^2 = N tr((W^ - W) H (W^ - W)^T):

quadratic, each row a problem of its own. That is what error feedback solves, so it rounds the head, and an embedding
that the head is tied to, for every method that reads data, learned ones included. Gradients of the logits' KL do better
than a search and worse than error feedback, to which they add next to nothing (docs/gguf.md): most rows are tokens that
hardly occur in calibration data. Where a method rounds to nearest, a searched grid remains.

A vocabulary has many rows, so they are done in pieces, which ranks share.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from roundel.engine.block import BlockQuantizer
from roundel.engine.finish import QuantizedLinears
from roundel.engine.moments import Hessian
from roundel.engine.observations import Observations
from roundel.engine.observers import InputHessians, InputSizes, InputStatistics
from roundel.engine.split import split
from roundel.engine.streams import Streams
from roundel.engine.target import Original, Target, check_weight, round_by_hessian, round_to_nearest
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.stack import stack
from roundel.model.linears import LinearView

# How much an error of a row that is looked up counts beside one of the same row in the head, where they are one: KL of
# either alone, on SmolLM2-135M at 8 bits.
_LOOKED_UP = 0.25
# Of a piece: whole tiles of two-level statistics, and few enough for error feedback's copies to be small.
_ROWS = 1 << 12

Rounding = Callable[[LinearView], Target]


class OutsideQuantizer:
    """Quantizes the head and the embedding in place.

    Args:
        worker: quantizes the blocks of the same job.
    """

    def __init__(self, worker: BlockQuantizer) -> None:
        self.job, self.recipe, self.coverage = worker.job, worker.job.recipe, worker.job.coverage
        self.observer, self.finisher = worker.observer, worker.finisher

    def quantize(self, view: LinearView, streams: Streams | None) -> QuantizedLinears:
        """The head, or the embedding.

        Args:
            view: which.
            streams: what the last block returns; None where no data are read.

        Raises:
            NonFiniteError: NaN or infinity in the weight, or in the head's inputs.
        """
        check_weight(view)
        seen = Observations()
        rounding = self._rounding(view, streams, seen)
        rounded: list[QuantizedWeight] = []
        notes: list[str] = []
        for piece in self._pieces(view, rounding):
            rounded.append(piece.rounded.to(view.weight.device))
            notes += [piece.note] if piece.note not in ("", *notes) else []
        original = Original(view, view.weight.to(torch.float32, copy=True), note="; ".join(notes))
        return self.finisher.finish([(original, stack(rounded))], seen)

    def _rounding(self, view: LinearView, streams: Streams | None, seen: Observations) -> Rounding:
        """How its pieces are rounded, by what the head that multiplies by this weight is fed with."""
        embedded = view is self.coverage.embedding
        head = self.coverage.tied_head if embedded else view
        scheme, fit, device = self.coverage.schemes[view.name], self.recipe.grid_fit, self.job.device
        if streams is None or head is None:
            return lambda piece: round_to_nearest(piece, scheme, fit, None)
        if self.recipe.static_activations and not embedded:
            self.observer.fix_ranges([view], lambda: self._feed(head, streams))
        looked_up = _LOOKED_UP if embedded else 0.0
        if not (self.recipe.tuned or self.recipe.hessian_guided):
            diagonal = self._statistics(head, streams, seen)
            if diagonal is not None:
                diagonal = (diagonal + looked_up * diagonal.mean()).to(device)
            return lambda piece: round_to_nearest(piece, scheme, fit, diagonal)
        hessian = self._hessian(head, streams, seen)
        moments = hessian.take_mean().to(device) if hessian.tokens else None
        if moments is not None:
            diagonal = moments.diagonal()
            diagonal.add_(looked_up * diagonal.mean())
        return lambda piece: round_by_hessian(piece, scheme, hessian, moments, self.recipe)

    def _feed(self, head: LinearView, streams: Streams) -> None:
        with self.observer.passes.activations_quantized():
            self.observer.passes.feed_head(head, streams.inputs)

    def _statistics(self, head: LinearView, streams: Streams, seen: Observations) -> torch.Tensor | None:
        """`[in]`, where the grid is searched."""
        watched = [head] if self.recipe.grid_fit == "search" else []
        with InputStatistics(watched) as statistics, InputSizes(watched) as sizes:
            if watched:
                self._feed(head, streams)
        statistics.reduce(self.job.ranks)
        seen.add_sizes(sizes, self.job.ranks, [watched] if watched else [])
        seen.tokens |= {name: diagonal.tokens for name, diagonal in statistics.diagonals.items()}
        return statistics.mean_of(head.name)

    def _hessian(self, head: LinearView, streams: Streams, seen: Observations) -> Hessian:
        with InputHessians([[head]]) as hessians, InputSizes([head]) as sizes:
            self._feed(head, streams)
        hessians.reduce(self.job.ranks)
        seen.add_sizes(sizes, self.job.ranks, [[head]])
        seen.tokens[head.name] = hessians.hessians[0].tokens
        return hessians.hessians[0]

    def _pieces(self, view: LinearView, rounding: Rounding) -> Iterator[Target]:
        """Its rows, piece by piece."""
        scheme, weight = self.coverage.schemes[view.name], view.weight
        # An order of columns that is stored may depend on the rows.
        size = len(weight) if self.recipe.permutes(scheme, weight.shape[1]) else _ROWS
        pieces = []
        for number, rows in enumerate(weight.split(size)):
            piece = nn.Linear(rows.shape[1], len(rows), bias=False, device="meta")
            piece.weight = nn.Parameter(rows.to(self.job.device), requires_grad=False)
            first = number * size
            pieces.append(LinearView(f"{view.name}[{first}:{first + len(rows)}]", piece))
        schemes = {piece.name: scheme for piece in pieces}
        return split(pieces, rounding, schemes, self.job.ranks, bases=False)
