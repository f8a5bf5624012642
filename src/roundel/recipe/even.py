"""Mixtures of our own: as many bytes as llama.cpp's of a name, spent where they lower the error most.

llama.cpp gives the head, or the embedding that it is tied to, 6 or 8 bits whatever the blocks get. In a small model
that is a fifth to two thirds of the file. Here all matrices compete for the same bytes:

    minimise  sum_i s_i e(t_i)     subject to     sum_i bytes_i(t_i) <= bytes of llama.cpp's mixture

with e(t) the relative squared error that type t makes of a weight, and s_i how much of it comes out at the end of the
model. Both are constants: e was measured on a model in true float32 (microformer-mgm, searched grids), s as the KL of
SmolLM2-135M and of Gemma 3 270M on C4 when all matrices of one kind, and nothing else, are q4_0; the two models agree
within a factor of 1.6. Embedding and head count 2.3 times that, because tuning takes more off the blocks' errors than
error feedback off theirs. A matrix that has a type in its own file already makes no error with it.

Each matrix climbs the lower convex hull of its types; steps are taken by what they gain for a byte, until no further
one fits. But for the last steps that is the optimum (the linear relaxation of the knapsack).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from roundel.grid.block_types import BLOCK_TYPES, BlockTypeName
from roundel.recipe.mixtures import Matrix, Mixture

_ERRORS: dict[BlockTypeName, float] = {
    "q2_k": 0.0684,
    "q3_k": 0.0212,
    "q4_0": 0.00698,
    "q4_1": 0.00522,
    "q4_k": 0.00515,
    "q5_0": 0.00172,
    "q5_1": 0.00116,
    "q5_k": 0.00122,
    "q6_k": 0.000301,
    "q8_0": 0.000025,
}
_SENSITIVITIES = {"key": 1.0, "query": 1.0, "output": 1.6, "gate": 2.0, "up": 3.8, "value": 4.6, "down": 6.5}
_OTHER = 2.0
_LOOKED_UP, _HEAD = 60.0, 200.0


@dataclass(frozen=True)
class _Step:
    """From one type of a matrix to the next larger on its hull."""

    matrix: int
    place: int
    gain: float
    bytes: int


def even_types(base: Mixture, matrices: Sequence[Matrix]) -> dict[str, BlockTypeName]:
    """A type for each matrix, by its name; all together no larger than with `base`.

    Args:
        base: llama.cpp's mixture of that size.
        matrices: of a model; rows of each are whole blocks of some type.
    """
    left = sum(matrix.bytes_of(base.type_of(matrix)) for matrix in matrices)
    hulls = [_hull(matrix, base) for matrix in matrices]
    left -= sum(matrix.bytes_of(hull[0]) for matrix, hull in zip(matrices, hulls, strict=True))
    places, blocked = [0] * len(matrices), set()
    for step in sorted(_steps(matrices, hulls), key=lambda step: (-step.gain / step.bytes, step.matrix)):
        if step.matrix in blocked:
            continue
        if step.bytes > left:
            blocked.add(step.matrix)  # its next step leads on from this one
            continue
        left -= step.bytes
        places[step.matrix] = step.place
    found = zip(matrices, hulls, places, strict=True)
    return {matrix.name: hull[place] for matrix, hull, place in found}


def _steps(matrices: Iterable[Matrix], hulls: Iterable[list[BlockTypeName]]) -> Iterable[_Step]:
    for number, (matrix, hull) in enumerate(zip(matrices, hulls, strict=True)):
        for place in range(1, len(hull)):
            less, more = hull[place - 1], hull[place]
            gain = _loss(matrix, less) - _loss(matrix, more)
            yield _Step(number, place, gain, matrix.bytes_of(more) - matrix.bytes_of(less))


def _hull(matrix: Matrix, base: Mixture) -> list[BlockTypeName]:
    """The types worth having, from the smallest: each gains less for a byte than the one before."""
    usual = base.type_of(matrix)
    hull: list[BlockTypeName] = []
    for name in sorted(
        _candidates(matrix, base, usual), key=lambda name: (matrix.bytes_of(name), _loss(matrix, name))
    ):
        if hull and _loss(matrix, name) >= _loss(matrix, hull[-1]):
            continue
        while len(hull) > 1 and _rate(matrix, hull[-2], hull[-1]) <= _rate(matrix, hull[-1], name):
            hull.pop()
        hull.append(name)
    return hull


def _candidates(matrix: Matrix, base: Mixture, usual: BlockTypeName) -> set[BlockTypeName]:
    """Types of whole blocks in its rows, of a bit less than the mixture's at least."""
    bits = BLOCK_TYPES[base.type].bits - 1
    whole = {name for name in _ERRORS if matrix.shape[1] % BLOCK_TYPES[name].block == 0}
    found = {name for name in whole if BLOCK_TYPES[name].bits >= bits}
    kept = {name for name in whole if name == matrix.kept}
    return found | kept | {usual}


def _rate(matrix: Matrix, less: BlockTypeName, more: BlockTypeName) -> float:
    """Loss that goes for a byte."""
    return (_loss(matrix, less) - _loss(matrix, more)) / (matrix.bytes_of(more) - matrix.bytes_of(less))


def _loss(matrix: Matrix, name: BlockTypeName) -> float:
    if name == matrix.kept:
        return 0.0
    if matrix.spot is None:
        sensitivity = _HEAD * matrix.head + _LOOKED_UP * matrix.looked_up
    else:
        sensitivity = _SENSITIVITIES.get(matrix.spot.role, _OTHER) / matrix.spot.experts
    return sensitivity * _ERRORS[name]
