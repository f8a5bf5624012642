"""Two ways to multiply with packed weights, by how many digits of 8 bits hold an activation (reference.py).

exact   three: as products of floats with the decoded weights, to rounding
fast    one, and two in blocks whose largest stands out; two for all with weights of more than 4 bits, which are finer
        than what one would add
"""

from typing import Literal, get_args

Mode = Literal["exact", "fast"]
MODES: tuple[Mode, ...] = get_args(Mode)
