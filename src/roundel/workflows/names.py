"""What several models are called beside each other."""

from collections.abc import Sequence
from pathlib import Path

import torch

from roundel.errors import ModelError, RecipeError
from roundel.workflows.open import ModelOrPath


def short_names(models: Sequence[ModelOrPath]) -> list[str]:
    """Short names that tell the models apart.

    Raises:
        RecipeError: none, or one of them twice.
        ModelError: a name is empty.
    """
    if isinstance(models, str | Path | torch.nn.Module):
        raise RecipeError("models is a single one: a list of models is expected")
    if not models:
        raise RecipeError("no model: one or more are expected")
    paths = [type(m).__name__ if isinstance(m, torch.nn.Module) else str(m).rstrip("/") for m in models]
    if "" in paths:
        raise ModelError("the model's name is empty: a model folder, a .gguf file or a hub id is expected")
    for parts in range(1, 9):
        names = ["/".join(Path(path).parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    if all(isinstance(model, torch.nn.Module) for model in models):
        return [f"{path} {number}" for number, path in enumerate(paths, 1)]
    twice = next(path for path in paths if paths.count(path) > 1)
    raise RecipeError(f"{twice} is given twice: different models are expected")
