"""From the bytes of a file to its text: what it is packed with, and how its letters are encoded.

A file is unpacked by its suffix (.gz, .bz2, .xz, .zst), and the suffix before that says what it holds. A byte order
mark says the encoding with certainty, so it wins; without one the encoding is what the user says, else UTF-8. It is
never guessed: text in Latin-1 that is read as anything else is still text, and nobody sees the damage.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from roundel.errors import CalibrationError

PACKED = (".gz", ".bz2", ".xz", ".zst")
# What reading a damaged file raises.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, RecursionError)
# The longer ones first: UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# How files begin that are no text.
_BEGINNINGS = (
    (b"\x1f\x8b", "gzip (its name should end in .gz)"),
    (b"\x28\xb5\x2f\xfd", "zstd (its name should end in .zst)"),
    (b"BZh91AY&", "bzip2 (its name should end in .bz2)"),
    (b"\xfd7zXZ", "xz (its name should end in .xz)"),
    (b"PAR1", "a table of Parquet (its name should end in .parquet)"),
    (b"ARROW1", "a table of Arrow (its name should end in .arrow)"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x7fELF", "a program"),
)
# Characters of what nobody wants, at a time.
_REST = 1 << 20
_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar")


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, in small letters, without that of the packing.

    Raises:
        CalibrationError: an archive of files, or packed twice.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    inner = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    if inner in _ARCHIVES:
        raise CalibrationError(
            f"{path} is an archive of files: unpack it, and give the folder or a file in it"
        )
    if packed and inner in PACKED:
        raise CalibrationError(
            f"{path} is packed twice by its name: a file packed once is expected, unpack it"
        )
    return inner


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    packed = path.suffix.lower()
    if packed == ".zst":
        return _open_zst(path)
    opening: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(packed, open)
    return cast(IO[bytes], opening(path, "rb"))


def _open_zst(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError as error:
        raise CalibrationError(
            f"reading {path} needs pyarrow: pip install 'roundel[data]', or unpack it (zstd -d)"
        ) from error
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


def open_text(path: Path, encoding: str | None, newline: str | None = None) -> tuple[IO[str], str]:
    """The text of a file, and words for its encoding where that is not simply UTF-8.

    Args:
        path: of the file.
        encoding: of a file without a byte order mark; None: UTF-8.
        newline: as for `open`.

    Raises:
        OSError: it cannot be opened.
        CalibrationError: a library that unpacks it is not there.
    """
    stream: Any = open_bytes(path)
    head = stream.peek(4)
    for mark, name in _MARKS:
        if head.startswith(mark):
            words = f"{name.removesuffix('-sig')} by its mark" if name != "utf-8-sig" else ""
            return io.TextIOWrapper(stream, encoding=name, newline=newline), words
    text = io.TextIOWrapper(stream, encoding=encoding or "utf-8", newline=newline)
    return text, f"read as {encoding}" if encoding else ""


def unreadable(path: Path, error: Exception, wanted: str = "") -> CalibrationError:
    """What a file's damage is called, and what to do about it.

    Args:
        path: of the file.
        error: that reading it raised.
        wanted: what the file should hold; nothing: text.
    """
    found: str = str(error) or type(error).__name__
    if isinstance(error, EOFError):
        found = "it ends too early"
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start : error.start + 1].hex()
        found = f"byte 0x{byte} is no {error.encoding} ({error.reason})" if byte else error.reason
    advice = wanted or "UTF-8 text, JSON, CSV, Parquet or saved token ids are expected"
    if isinstance(error, UnicodeError | NotText):
        found += _looks_like(path)
        advice = (
            "UTF-8 text is expected, or give its encoding with --encoding (encoding=latin-1, utf-16-le, ...)"
        )
    return CalibrationError(f"{path} cannot be read: {found}; {advice}")


def _looks_like(path: Path) -> str:
    try:
        with open_bytes(path) as file:
            head = file.read(8)
    except UNREADABLE:
        return ""
    found = begins_like(head)
    return f"; it begins like {found}" if found else ""


def begins_like(head: bytes) -> str:
    """What begins with these bytes, of what is known and no text; nothing otherwise."""
    return next((what for mark, what in _BEGINNINGS if head.startswith(mark)), "")


class NotText(ValueError):
    """What was decoded is no text."""


def whole_text(path: Path, encoding: str | None, newline: str | None = None) -> tuple[str, str]:
    """All of a file's text, and words for its encoding.

    Raises:
        NotText: it holds NUL characters: bytes, or UTF-16 without a mark.
    """
    stream, words = open_text(path, encoding, newline)
    with stream:
        text = stream.read()
    check_text(text)
    return text, words


def check_text(text: str) -> None:
    """Raise NotText where what was decoded holds NUL characters: bytes, or UTF-16 without a mark."""
    if "\0" in text:
        raise NotText("it holds NUL characters, as UTF-16 without a mark and files of bytes do")


def passages(stream: IO[str], length: int) -> Iterator[str]:
    """Running text in passages of about so many characters, which end behind a line, a word at least.

    Args:
        stream: of text.
        length: of a passage.

    Raises:
        NotText: it holds NUL characters.
    """
    rest = ""
    while block := stream.read(length):
        if "\0" in block:
            while stream.read(_REST):  # what is damaged is said to be damaged
                pass
        check_text(block)
        rest += block
        half = len(rest) // 2
        cut = next((place for mark in ("\n", " ") if (place := rest.rfind(mark) + 1) > half), len(rest))
        yield rest[:cut]
        rest = rest[cut:]
    if rest:
        yield rest
