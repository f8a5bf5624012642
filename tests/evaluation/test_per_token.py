"""The file with every prediction adds up to the figures."""

import math
from pathlib import Path

import pyarrow.parquet
import pytest

import roundel


def test_rows_add_up(llama: Path, held_out: Path, tmp_path: Path) -> None:
    rounded = roundel.quantize(llama, roundel.Recipe(method="rtn", bits=3, group_size=32))
    found = roundel.evaluate(
        rounded.model, tokenizer=rounded.tokenizer, reference=llama, text=[str(held_out), "pydoc"], window=32,
        limit=3, per_token=tmp_path / "tokens.parquet",
    )  # fmt: skip
    rows = pyarrow.parquet.read_table(tmp_path / "tokens.parquet").to_pylist()
    assert len(rows) == 2 * 3 * 32
    assert [row["loss"] is None for row in rows] == ([True] + [False] * 31) * 6
    for number, text in enumerate(found.texts):
        own = rows[number * 96 : (number + 1) * 96]
        assert {row["text"] for row in own} == {text.text}
        assert [row["position"] for row in own] == list(range(32)) * 3
        losses = [row["loss"] for row in own if row["loss"] is not None]
        assert math.exp(sum(losses) / 93) == pytest.approx(text.perplexity.value)
        assert sum(row["kl"] for row in own) / 96 == pytest.approx(text.kl.mean.value)
        assert sum(row["same_top1"] for row in own) / 96 == pytest.approx(text.top1.value)
        assert max(row["kl"] for row in own) == text.kl.max
