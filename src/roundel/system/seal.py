"""Single files that Roundel wrote know that it did: pages, figures, predictions carry a seal.

    roundel-KIND-0123456789abcdef0123456789abcdef

stands in the file; the 32 digits are the BLAKE2b hash of the whole file with zeros in their place. A file whose seal
fits is what Roundel wrote, byte for byte, and may be replaced by another of its kind. Everything else is the user's: a
file of another program, and one of ours that was edited since.
"""

import re
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from roundel.errors import OutputError
from roundel.system.files import json_text, reported, write_durably

Kind = Literal["manifest", "report", "page", "card", "figures", "comparison", "predictions"]

# What each is called in a message.
_KIND_NAMES: dict[Kind, str] = {
    "manifest": "manifest",
    "report": "report",
    "page": "page of a run",
    "card": "model card",
    "figures": "file of figures",
    "comparison": "comparison",
    "predictions": "file of predictions",
}
_DIGITS = 32


def unsealed(kind: Kind) -> str:
    """What a file holds where its seal will be."""
    return f"roundel-{kind}-{'0' * _DIGITS}"


def sealed(content: bytes, kind: Kind) -> bytes:
    """The same content, with its first `unsealed` made a seal."""
    begin, found, rest = content.partition(unsealed(kind).encode())
    assert found, "nowhere to put a seal"
    return begin + found[:-_DIGITS] + _hash(content) + rest


def is_sealed(path: Path, kind: Kind) -> bool:
    """Whether Roundel wrote a file of this kind, and nobody changed it since."""
    content = path.read_bytes()
    match = re.search(rf"roundel-{kind}-([0-9a-f]{{{_DIGITS}}})".encode(), content)
    if match is None:
        return False
    begin, end = match.span(1)
    return match[1] == _hash(content[:begin] + b"0" * _DIGITS + content[end:])


def check_place(path: Path, kind: Kind) -> None:
    """Refuse to replace a file that is not of our making.

    Raises:
        OutputError: another file has this name, or the file cannot be read.
    """
    if not path.is_file():
        return  # nothing, or a device
    with reported(path):
        ours = path.stat().st_size == 0 or is_sealed(path, kind)
    if not ours:
        raise OutputError(
            f"{path} exists, and is no {_KIND_NAMES[kind]} as roundel wrote it: choose another name, or move it away"
        )


def write_sealed(path: Path, kind: Kind, text: str) -> None:
    """Write a text that has `unsealed` in it; what a link points to is written, the link stays.

    Raises:
        OutputError: another file has this name, disk full, no permission.
    """
    check_place(path, kind)
    content = sealed(text.encode(), kind)
    if path.exists() and not path.is_file():  # /dev/stdout
        with reported(path):
            path.write_bytes(content)
        return
    write_durably(path.resolve(), lambda part: part.write_bytes(content))


def write_sealed_json(path: Path, kind: Kind, content: dict[str, Any], indent: int | None = None) -> None:
    """Write plain data with a seal beside them.

    Raises:
        OutputError: as `write_sealed`.
    """
    write_sealed(path, kind, json_text({"seal": unsealed(kind), **content}, indent))


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGITS // 2).hexdigest().encode()
