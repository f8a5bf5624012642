"""Numbers to integers and back. Knows nothing of models."""

from roundel.grid.affine import Start, join_starts, minmax_start
from roundel.grid.budget import outliers_within, scheme_within
from roundel.grid.joint import joint_start
from roundel.grid.outliers import Outliers
from roundel.grid.packing import pack, packed_words, unpack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start
from roundel.grid.statistics import Statistic, Tiles

__all__ = [
    "Outliers",
    "QuantizedWeight",
    "Scheme",
    "Start",
    "Statistic",
    "Tiles",
    "join_starts",
    "joint_start",
    "minmax_start",
    "outliers_within",
    "pack",
    "packed_words",
    "scheme_within",
    "searched_start",
    "unpack",
]
