"""Held-out text as windows of token ids, by the papers' convention.

The text is tokenized in ONE call, cut into windows without overlap, and the tail is dropped. A local file is
taken as it is. The data sets are joined as the papers join them: wikitext2 is the raw test split, its
documents joined by two newlines.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roundel.calibration.texts import pydoc_documents
from roundel.errors import CalibrationError


@dataclass(frozen=True)
class EvaluationText:
    """Token windows and the words that say how they came about.

    Attributes:
        windows: `[N, S]` int64.
        convention: what was joined and cut how, for printing beside every figure.
    """

    windows: torch.Tensor
    convention: str


def evaluation_windows(
    text: str, tokenizer: Any, window: int = 2048, limit: int | None = None
) -> EvaluationText:
    """Windows of `wikitext2` (hub), `pydoc`, or a local text file.

    Args:
        text: a name or a path.
        tokenizer: the original model's.
        window: tokens per window.
        limit: at most so many windows, from the beginning.

    Raises:
        CalibrationError: no such text, or less than one window of it.
    """
    content, joined = _read(text)
    ids = tokenizer(content, add_special_tokens=False, verbose=False, return_tensors="pt")["input_ids"][0]
    count = len(ids) // window
    if count == 0:
        raise CalibrationError(
            f"{text} has {len(ids)} tokens; one window of {window} is wanted: give more text or a smaller --window"
        )
    count = min(count, limit) if limit else count
    convention = f"{joined}; {count} windows of {window} tokens without overlap"
    return EvaluationText(ids[: count * window].view(count, window), convention)


def _read(text: str) -> tuple[str, str]:
    path = Path(text).expanduser()
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), f"{path.name}, whole file, one tokenizer call"
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"{text} cannot be read: {error}; UTF-8 text is wanted") from error
    if text == "pydoc":
        return "\n\n".join(pydoc_documents()), "Python's reference manual, topics joined by blank lines"
    if text == "wikitext2":
        return "\n\n".join(_wikitext2()), "WikiText-2 raw test, documents joined by two newlines"
    raise CalibrationError(f"no text {text}: a local text file, `wikitext2` or `pydoc` is wanted")


def _wikitext2() -> list[str]:
    try:
        import datasets

        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"wikitext2 cannot be loaded ({type(error).__name__}): pip install 'roundel[data]' and reach the "
            "hub, or give a local file with --text"
        ) from error
    return list(rows["text"])
