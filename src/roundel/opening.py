"""Opening what a caller named as the model: a folder, a file, a hub id, a quantized folder, a model in memory."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from roundel.activations.attach import attach_saved
from roundel.calibration.gather import CalibrationSource
from roundel.errors import ModelError
from roundel.formats import open_packed, packed_format
from roundel.formats.reload import unpack_model
from roundel.model.source import SourceModel, open_source, open_tokenizer
from roundel.model.storage import InMemory
from roundel.model.text_path import text_model

ModelOrPath = str | Path | torch.nn.Module


@dataclass(frozen=True)
class Given:
    """What a caller gave.

    Attributes:
        blocks: pattern of its decoder blocks' names; None: they are found.
        known: what was found out about it, for all runs on it: by what decides it.
    """

    model: ModelOrPath
    tokenizer: Any | None
    calibration: CalibrationSource | None
    trust_remote_code: bool
    allow_pickle: bool
    blocks: str | None = None
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def location(self) -> str | None:
        """The folder, or hub id, that other files of the model are in; None where there is none."""
        if isinstance(self.model, torch.nn.Module):
            opened_from = str(getattr(self.model, "name_or_path", "") or "")
            return opened_from if opened_from and Path(opened_from).is_dir() else None
        path = Path(self.model).expanduser()
        if path.is_file():
            return None
        return str(path) if path.is_dir() else str(self.model)

    def open(self, stream_with: Path | None = None) -> SourceModel:
        """The original model; its blocks stay on disk where there is a folder `stream_with`."""
        return open_model(
            self.model,
            self.tokenizer,
            self.trust_remote_code,
            self.allow_pickle,
            stream_with=stream_with,
            blocks=self.blocks,
        )


def open_model(
    model: ModelOrPath,
    tokenizer: Any | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    *,
    quantized: bool = False,
    stream_with: Path | None = None,
    blocks: str | None = None,
) -> SourceModel:
    """Open whatever the user named.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        tokenizer: instead of the model's own.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints.
        quantized: a quantized model is welcome, and its activations are quantized as its folder says.
        stream_with: leave blocks of a safetensors checkpoint on disk; a folder for converted tensors.
        blocks: pattern of the blocks' names; None: they are found.

    Raises:
        ModelError: it cannot be opened.
    """
    if isinstance(model, torch.nn.Module):
        model.eval().requires_grad_(False)
        return SourceModel(f"{type(model).__name__} in memory", model, tokenizer)
    folder = Path(model).expanduser()
    if not quantized and packed_format(folder) == "roundel":  # others, transformers refuses
        raise ModelError(f"{model} is quantized already: the original, unquantized model is wanted")
    packed = open_packed(folder, trust_remote_code, streamed=stream_with is not None) if quantized else None
    if packed is not None:
        reader = tokenizer or open_tokenizer(str(folder), trust_remote_code)
        opened = SourceModel(str(model), packed[0], reader, packed[1] or InMemory())
    else:
        opened = open_source(
            str(model),
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            quantized=quantized,
            stream_with=stream_with,
            blocks=blocks,
        )
    if quantized and text_model(opened.model) is not opened.model:
        unpack_model(opened.model)  # which transformers does when the whole of it runs
    if quantized:
        _attach_activations(opened.model, folder)
    return replace(opened, tokenizer=tokenizer or opened.tokenizer)


def _attach_activations(model: Any, folder: Path) -> None:
    """Quantize activations as the folder says, with the code that its weights were tuned under."""
    if attach_saved(model, folder) is not None:
        # A compressed-tensors folder's own hooks would round the same inputs a second time.
        for module in model.modules():
            if hasattr(module, "quantization_scheme"):
                module.quantization_enabled = False
