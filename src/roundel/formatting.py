"""How figures, names and other libraries' errors are said to people, wherever they are said."""

import re

# What would move the cursor, change colours or end the output; lines and tabs may be part of a text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

UNREACHED = (
    "it is not in the hub's cache, and the hub cannot be reached: no connection, or HF_HUB_OFFLINE is set"
)


def size(count: float) -> str:
    """Bytes for people: `74.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def about(seconds: float) -> str:
    """A time for people who wait: `3.2 s`, `41 s`, `12 min`, `1.8 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def printable(text: str) -> str:
    """A text that any terminal and any file in UTF-8 takes: control characters and lone surrogates (bytes of a file's
    name that are no text) as `\\x1b`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """What an exception says, as one line for a message.

    The hub's library has a phrase for each way of being offline; here it is one, which depends on no environment.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return UNREACHED
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" :.") if lines else "no message"


def kind_and_line(error: BaseException) -> str:
    """The same after the exception's kind: `KeyError: 'bias'`."""
    return f"{type(error).__name__}: {first_line(error)}"
