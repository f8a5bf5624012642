"""Files of text in every form, and as much of a model as text is read for."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig


class Embedding:
    weight = torch.zeros(100_000, 1)


class Model:
    """As much of a model as text is read for."""

    config = LlamaConfig(max_position_embeddings=512)

    def forward(self, input_ids: torch.Tensor) -> None:
        raise AssertionError("text is read, and no model runs")

    def get_input_embeddings(self) -> Embedding:
        return Embedding()


def tabular(rows: list[list[str]], separator: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(rows)
    return out.getvalue()


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def arrow(rows: list[dict[str, Any]], folder: Path) -> None:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
