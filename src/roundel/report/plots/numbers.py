"""How numbers look: the same kind always in the same way."""

import math

# By number: in program text they are easily taken for others.
NONE = "\u2013"
TIMES = "\u00d7"
_MINUS = "\u2212"
_UP = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(value: float | None, digits: int = 4) -> str:
    """Some significant digits; powers of ten in words of print, not of programs."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else _MINUS + "∞")
    if value == 0:
        return "0"
    size = abs(value)
    sign = _MINUS if value < 0 else ""
    power = math.floor(math.log10(size))
    head = f"{size:.{digits - 1}e}"
    power = int(head.split("e")[1])
    if -4 <= power < max(digits, 6):
        return sign + f"{float(head):.{max(digits - 1 - power, 0)}f}"
    mantissa = head.split("e")[0]
    return f"{sign}{mantissa}{TIMES}10{str(power).translate(_UP)}"


def fixed(value: float | None, places: int = 3) -> str:
    """So many decimals; huge values as `short` writes them."""
    if value is None:
        return NONE
    if not math.isfinite(value) or abs(value) >= 1e6:
        return short(value)
    return f"{value:.{places}f}".replace("-", _MINUS)


def percent(share: float | None, places: int = 2) -> str:
    """A share as percent."""
    return NONE if share is None else fixed(100 * share, places) + " %"


def count(value: int | None) -> str:
    """A whole number with thin gaps between thousands."""
    return NONE if value is None else f"{value:,}".replace(",", "\u202f")


def size(value: float | None) -> str:
    """Bytes in the unit that suits them; 1 MB = 10⁶ bytes."""
    if value is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.{1 if value < 100 * factor else 0}f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
