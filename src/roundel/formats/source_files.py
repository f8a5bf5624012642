"""The files that a model came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundel.model.place import Place


@dataclass(frozen=True)
class SourceFiles:
    """What a model came from, for containers that hold more than its weights.

    Attributes:
        place: its files; None of a model in memory.
        tokenizer: None where there is none.
        like: a file in the container's own format whose metadata are to be taken.
    """

    place: Place | None = None
    tokenizer: Any | None = None
    like: Path | None = None
