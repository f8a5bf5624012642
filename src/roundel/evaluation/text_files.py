"""The papers' data sets as local files, in the forms in which they were first published.

    wikitext2   wiki.test.raw               a row for each line
    ptb         ptb.valid.txt               the same
    ptb_new     ptb.test.txt                the same
    c4, c4_new  c4-validation.00000-of-00008.json, or .json.gz     an object with `text` on each line

in the folder itself or in one below it that has the data set's name. Rows are those that the hub's copies have, so
that joining them gives the same text to the last character.
"""

import gzip
import json
from pathlib import Path

from roundel.errors import CalibrationError

_C4 = ("c4-validation.00000-of-00008.json", "c4-validation.00000-of-00008.json.gz")
_FILES = {
    "wikitext2": ("wiki.test.raw",),
    "ptb": ("ptb.valid.txt",),
    "ptb_new": ("ptb.test.txt",),
    "c4": _C4,
    "c4_new": _C4,
}
_FOLDERS = {"ptb_new": "ptb", "c4_new": "c4"}


def local_rows(name: str, folder: Path) -> list[str]:
    """The rows of a data set.

    Raises:
        CalibrationError: it is not in the folder, or cannot be read.
    """
    place = folder / _FOLDERS.get(name, name)
    candidates = [below / file for below in (place, folder) for file in _FILES[name]]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise CalibrationError(
            f"no {name} in {folder}: {' or '.join(_FILES[name])}, there or in {place.name}/, is expected; or give any "
            "text file with --text"
        )
    try:
        if ".json" in path.suffixes:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            rows = content.decode("utf-8").rstrip("\n").split("\n")
            return [str(json.loads(row)["text"]) for row in rows]
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}): the file as it was published is expected"
        ) from error
    if lines[-1] == "":
        lines.pop()
    if name == "wikitext2":  # the hub keeps line ends, and nothing of blank lines
        return [f"{line}\n" if line.strip() else "" for line in lines]
    return [line.strip() for line in lines]
