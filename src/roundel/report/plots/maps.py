"""Where a weight's outliers lie, as the figure in SpQR's paper shows it (arXiv:2306.03078).

A map is a small picture, one pixel a bin of the weight, stronger where more outliers lie. It is one colour with
varying opacity, so that an empty bin is the page itself, in the light as in the dark.
"""

import base64
import io
import math

_COLOUR = (217, 95, 2)
_LEAST = 0.22


def outlier_picture(counts: list[list[int]]) -> str:
    """The map as the address of a PNG inside the page: `data:image/png;base64,...`."""
    import numpy as np
    from matplotlib.image import imsave

    table = np.asarray(counts, dtype=float)
    largest = table.max(initial=0.0)
    pixels = np.zeros((*table.shape, 4), dtype=np.uint8)
    pixels[..., :3] = _COLOUR
    if largest > 0:
        strength = np.log1p(table) / math.log1p(largest)
        pixels[..., 3] = np.where(table > 0, 255 * (_LEAST + (1 - _LEAST) * strength), 0).astype(np.uint8)
    buffer = io.BytesIO()
    # Of the keys that would be written by themselves, the version of matplotlib is one.
    imsave(buffer, pixels, format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
