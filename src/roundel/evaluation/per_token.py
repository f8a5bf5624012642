"""Every single prediction as a row of a parquet file, to see where a model differs.

text, window, position     which token of which window
token                      its id
loss, reference_loss       of predicting it, nats; none for a window's first token
kl, same_top1              of the prediction made after it
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from roundel.errors import OutputError
from roundel.evaluation.measure import Measured
from roundel.evaluation.windows import EvaluationText
from roundel.system.files import write_durably
from roundel.system.seal import check_place, sealed, unsealed


def check_parquet(path: Path) -> None:
    """Raise OutputError where pyarrow is not installed, or another file has this name."""
    _pyarrow()
    check_place(path, "predictions")


def write_tokens(path: Path, texts: Sequence[EvaluationText], measured: Sequence[Measured]) -> None:
    """Write all predictions.

    Raises:
        OutputError: the file cannot be written, or pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    tables = [pyarrow.table(_columns(text, found)) for text, found in zip(texts, measured, strict=True)]
    table = pyarrow.concat_tables(tables).replace_schema_metadata({"roundel": unsealed("predictions")})

    def write(part: Path) -> None:
        parquet.write_table(table, part)
        part.write_bytes(sealed(part.read_bytes(), "predictions"))

    check_place(path, "predictions")
    write_durably(path.resolve(), write)


def _columns(text: EvaluationText, found: Measured) -> dict[str, Any]:
    count, length = text.windows.shape
    columns: dict[str, Any] = {
        "text": [text.name] * (count * length),
        "window": torch.arange(count).repeat_interleave(length).numpy(),
        "position": torch.arange(length).repeat(count).numpy(),
        "token": text.windows.flatten().numpy(),
        "loss": _behind_the_first(found.loss),
    }
    if found.reference_loss is not None and found.kl is not None and found.same is not None:
        columns["reference_loss"] = _behind_the_first(found.reference_loss)
        columns["kl"] = found.kl.flatten().numpy()
        columns["same_top1"] = found.same.flatten().bool().numpy()
    return columns


def _behind_the_first(losses: torch.Tensor) -> list[float | None]:
    """`[N, S - 1]` as N S entries: nothing predicts the first token of a window."""
    return [value for row in losses.tolist() for value in (None, *row)]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OutputError("a file with every token needs pyarrow: pip install 'roundel[data]'") from error
    return pyarrow, pyarrow.parquet
