"""Fixtures of several tests of models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.wrappers import build
from zoo.training import train_tokenizer


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model with its tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = build(name)
            model.save_pretrained(folder)
            train_tokenizer().save_pretrained(folder)
        return made[name]

    return make
