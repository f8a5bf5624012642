"""Roundel: post-training weight quantization of causal language models by learned rounding.

    import roundel
    roundel.quantize("path/to/model", "autoround-w4g128", output="smaller")
    print(roundel.evaluate("smaller", reference="path/to/model", text="held-out.txt"))
"""

from importlib.metadata import version

from roundel.api import Quantized, evaluate, load, quantize
from roundel.errors import RoundelError
from roundel.grid import QuantizedWeight, Scheme
from roundel.progress import Progress
from roundel.recipe import Recipe

__version__ = version("roundel")

__all__ = [
    "Progress",
    "Quantized",
    "QuantizedWeight",
    "Recipe",
    "RoundelError",
    "Scheme",
    "evaluate",
    "load",
    "quantize",
]
