"""Numbers to integers and back. Knows nothing of models."""

from roundel.grid.affine import Start, minmax_start
from roundel.grid.packing import pack, packed_words, unpack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start

__all__ = [
    "QuantizedWeight",
    "Scheme",
    "Start",
    "minmax_start",
    "pack",
    "packed_words",
    "searched_start",
    "unpack",
]
