"""What a caller asks for: a model, its data, and how it is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roundel.calibration.gather import CalibrationSource
from roundel.formats import packed_format
from roundel.model.adapter import find_adapter
from roundel.model.in_memory import name_of
from roundel.model.place import Place
from roundel.model.source import SourceModel, open_skeleton
from roundel.workflows.arguments import ModelOptions
from roundel.workflows.open import (
    ONLY_ROUNDEL_OPENS,
    ModelOrPath,
    ModelOrPlace,
    find_model,
    marked,
    open_model,
)


@dataclass(frozen=True)
class ModelRequest:
    """A model that is to be quantized.

    Attributes:
        model: its files, or the model itself.
        options: how it is opened.
        tokenizer: instead of the model's own.
        calibration: instead of what the recipe says.
    """

    model: ModelOrPlace
    options: ModelOptions
    tokenizer: Any | None = None
    calibration: CalibrationSource | None = None

    @classmethod
    def find(
        cls,
        model: ModelOrPath,
        options: ModelOptions,
        tokenizer: Any | None = None,
        calibration: CalibrationSource | None = None,
    ) -> "ModelRequest":
        """Look for the files of a model.

        Raises:
            ModelError: there is nothing of that name.
        """
        found = find_model(
            model, options.revision, allow_pickle=options.allow_pickle, progress=options.progress
        )
        return cls(found, options, tokenizer, calibration)

    @property
    def in_memory(self) -> bool:
        """Whether the caller holds the model."""
        return isinstance(self.model, torch.nn.Module)

    @property
    def path(self) -> Path | None:
        """Of the model's files; None: it is in memory."""
        return self.model.path if isinstance(self.model, Place) else None

    def open(self, stream_with: Path | None = None) -> SourceModel:
        """The original model; its blocks stay on disk where there is a folder `stream_with`."""
        options = self.options
        return open_model(
            self.model,
            self.tokenizer,
            options.trust_remote_code,
            options.allow_pickle,
            allow_own=options.allow_quantized,
            stream_with=stream_with,
            blocks=options.blocks,
            base=options.base,
        )

    def look(self) -> SourceModel:
        """Names, classes and shapes of the original model; no weight is read."""
        model, options = self.model, self.options
        if isinstance(model, torch.nn.Module):
            return SourceModel(name_of(model), model, None, read_from=marked(model, options.allow_quantized))
        if find_adapter(model, options.base) is not None:
            return self.open()
        if packed_format(model.path) in ONLY_ROUNDEL_OPENS:
            return self.open(stream_with=model.path)  # in which nothing is written
        return open_skeleton(
            model,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
            allow_own=options.allow_quantized,
            blocks=options.blocks,
        )
