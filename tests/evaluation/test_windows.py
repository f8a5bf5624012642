"""The conventions of the papers, on a stand-in for the hub (no hub can be reached where the tests run)."""

import random
import sys
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import pytest
import torch

from roundel.errors import CalibrationError
from roundel.evaluation.windows import evaluation_windows

DOCUMENTS = [topics[name] for name in sorted(topics)]


class Rows(list):
    """Rows as `datasets` serves them: a row by number, a slice as columns."""

    def __init__(self, column: str) -> None:
        super().__init__({column: text} for text in DOCUMENTS)
        self.column = column

    def __getitem__(self, key):
        found = super().__getitem__(key)
        return {self.column: [row[self.column] for row in found]} if isinstance(key, slice) else found


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What was asked of the hub."""
    calls: list[tuple] = []
    hub = ModuleType("datasets")

    def load_dataset(name, configuration, *, split, **extra):
        calls.append((name, configuration, split, extra))
        return Rows("sentence" if "ptb" in name else "text")

    hub.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", hub)
    return calls


@pytest.mark.parametrize(
    ("name", "split", "joint"),
    [
        ("wikitext2", "test", "\n\n"),
        ("ptb", "validation", "\n\n"),
        ("ptb_new", "test", " "),
        ("c4_new", "validation", " "),
    ],
)
def test_documents_are_joined_and_tokenized_once(
    name: str, split: str, joint: str, asked: list[tuple], llama: Path, load_model
) -> None:
    _, tokenizer = load_model(llama)
    found = evaluation_windows(name, tokenizer, 128)
    ids = tokenizer(joint.join(DOCUMENTS), verbose=False)["input_ids"]
    assert asked[0][2] == split
    assert len(found.windows) == min(len(ids) // 128, 256 if name == "c4_new" else len(ids))
    assert found.windows.flatten().tolist() == ids[: found.windows.numel()]


def test_c4_draws_windows_as_gptq_does(asked: list[tuple], llama: Path, load_model) -> None:
    _, tokenizer = load_model(llama)
    found = evaluation_windows("c4", tokenizer, 512)
    assert found.windows.shape == (256, 512)
    random.seed(0)
    wanted = []
    while len(wanted) < 3:
        ids = tokenizer(DOCUMENTS[random.randint(0, len(DOCUMENTS) - 1)], verbose=False)["input_ids"]
        if len(ids) > 512:
            first = random.randint(0, len(ids) - 512 - 1)
            wanted.append(ids[first : first + 512])
    assert torch.equal(found.windows[:3], torch.tensor(wanted))
    assert "256 random windows of 512 tokens, seed 0" in found.convention


def test_an_unreachable_hub_says_what_to_do(llama: Path, load_model) -> None:
    _, tokenizer = load_model(llama)
    for name in ("wikitext2", "c4"):
        with pytest.raises(CalibrationError, match="local file with --text"):
            evaluation_windows(name, tokenizer, 128)
