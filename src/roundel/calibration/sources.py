"""What a user names as calibration data: places, with a field and a number of samples each.

    a.jsonl                     a file, a folder, a pattern of files (texts/*.jsonl), `pydoc`, or a hub data set
    a.jsonl:body                of its rows the field `body`;  a.json:instruction+output  of several fields
    a.jsonl:300                 300 samples of it
    a.jsonl:body:300,b.txt:100  both, and 100 samples of another one

Colons and commas are letters like others in a name that exists: the longest one that does is taken, so
`C:\\texts\\a.txt` and `notes: first, second.txt` are files. A field whose name is a number is followed by a colon
(`a.csv:2024:`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roundel.errors import CalibrationError

# `self` is text that the model writes.
SELF = "self"


@dataclass(frozen=True)
class Source:
    """One place that texts come from.

    Attributes:
        place: path or name.
        field: the column of its rows that is read, or several with `+` between; none: the form is recognized.
        samples: calibration samples taken from it; None: what the others leave.
    """

    place: str
    field: str = ""
    samples: int | None = None

    @property
    def path(self) -> Path:
        """The place as a path, which need not exist."""
        return Path(self.place).expanduser()

    @property
    def is_local(self) -> bool:
        """Whether the place is on this machine."""
        return _exists(self.place)


def parse_sources(text: str) -> list[Source]:
    """The sources that a text names.

    Raises:
        CalibrationError: an empty name, or a number of samples below 1.
    """
    pieces = text.split(",")
    sources = []
    while pieces:
        # The longest name with commas that exists; else the piece up to the next comma.
        taken = next((n for n in range(len(pieces), 1, -1) if _named(",".join(pieces[:n]))), 1)
        sources.append(_source(",".join(pieces[:taken]).strip()))
        pieces = pieces[taken:]
    return sources


def total_samples(sources: Sequence[Source]) -> int | None:
    """The samples of sources that all say how many; None where one does not."""
    counts = [source.samples for source in sources if source.samples is not None]
    return sum(counts) if len(counts) == len(sources) else None


def share_samples(sources: Sequence[Source], nsamples: int) -> list[int]:
    """The samples of each source: as it says, and of the rest equally many of those that do not say.

    Raises:
        CalibrationError: they say more than there are, or other than there are.
    """
    said = sum(source.samples or 0 for source in sources)
    silent = [number for number, source in enumerate(sources) if source.samples is None]
    rest = nsamples - said
    if rest < len(silent) or (rest and not silent):
        raise CalibrationError(
            f"the calibration sources name {said} samples and nsamples is {nsamples}"
            + (f", with {len(silent)} more sources to share the rest" if silent else "")
            + f": set nsamples={said + len(silent)}{' or more' if silent else ''}, or other numbers behind the colons"
        )
    shares = [source.samples or 0 for source in sources]
    for order, number in enumerate(silent):
        shares[number] = rest // len(silent) + (order < rest % len(silent))
    return shares


def _named(piece: str) -> bool:
    """Whether a piece with commas in it is one source: in its name, that is, not behind the colons."""
    found = _existing(piece.strip())
    return found is not None and "," not in "".join(found[1])


def _existing(piece: str) -> tuple[str, list[str]] | None:
    """A piece as the longest name in it that exists, and what stands behind its colons."""
    return next(((place, rest) for place, rest in _cuts(piece) if _exists(place)), None)


def _source(piece: str) -> Source:
    place, rest = _existing(piece) or _cut_by_form(piece)
    if not place:
        raise CalibrationError(
            f"{piece!r} names no calibration data: FILE, FILE:FIELD, FILE:SAMPLES or FILE:FIELD:SAMPLES is expected, "
            "with commas between several"
        )
    fields, samples = rest[:1], rest[1:]
    if len(rest) == 1 and rest[0].isdecimal():
        fields, samples = [], rest
    if any(samples) and not samples[0].isdecimal():
        raise CalibrationError(
            f"{samples[0]!r} in {piece} is no number of samples: {place}:FIELD:SAMPLES is expected"
        )
    count = int(samples[0]) if any(samples) else None
    if count == 0:
        raise CalibrationError(f"0 samples of {place}: 1 or more are expected, or leave it out")
    return Source(place, "".join(fields), count)


def _cuts(piece: str) -> list[tuple[str, list[str]]]:
    """A piece as name and what stands behind its last colons: none of them, one, two."""
    parts = piece.split(":")
    return [(":".join(parts[: len(parts) - n]), parts[len(parts) - n :]) for n in range(min(3, len(parts)))]


def _cut_by_form(piece: str) -> tuple[str, list[str]]:
    """A piece whose name does not exist: up to the first colon, which is not that of a Windows drive."""
    drive = piece[:2] if piece[:1].isalpha() and piece[1:3] in (":\\", ":/") else ""
    place, *rest = piece[len(drive) :].split(":")
    if len(rest) > 2:
        raise CalibrationError(
            f"no file {piece}, and it has more colons than FILE:FIELD:SAMPLES: give a file that exists"
        )
    return drive + place, rest


def _exists(place: str) -> bool:
    try:
        return bool(place) and Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL in it, no such user's home
        return False
