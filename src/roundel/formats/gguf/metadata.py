"""The metadata of a GGUF file that is made of a transformers model."""

from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from roundel.formats.gguf.architectures import architecture_of
from roundel.formats.gguf.keys import Key
from roundel.formats.gguf.layout import Layout
from roundel.formats.gguf.moving import is_stack, transposed_in
from roundel.formats.gguf.placing import layout_of
from roundel.formats.gguf.standard_keys import keys_with
from roundel.formats.gguf.tokenizer.keys import add_tokenizer

Metadata = list[tuple[str, Any, gguf.GGUFValueType]]
"""Key, value and type of each line, in order."""


def metadata_of(
    model: Any,
    tokenizer: Any,
    folder: Path | None,
    *,
    name: str = "",
    file_type: gguf.LlamaFileType = gguf.LlamaFileType.ALL_F32,
) -> Metadata:
    """What llama.cpp's converter would write before the tensors.

    Args:
        model: its config, and its tensors' names and shapes; they may be absent.
        tokenizer: its tokenizer.
        folder: of the model's files: its model card, its generation settings, `tokenizer.model`; None: there is none.
        name: of the model, where the folder's is not meant.
        file_type: for `general.file_type`.

    Raises:
        FormatError: llama.cpp has no such model or tokenizer, or Roundel cannot tell which.
    """
    config = model.config.get_text_config()
    known = architecture_of(model.config)
    writer = gguf.GGUFWriter(None, known.name)
    writer.add_type(gguf.GGUFType.MODEL)
    _add_general(writer, folder, name, _counted(model, layout_of(model, known.name)))
    for key in keys_with(known.keys):
        _add(writer, key, config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer, folder, config, known.special_tokens)
    return [(key, line.value, line.type) for key, line in writer.kv_data[0].items()]


def added_tensors(config: Any) -> dict[str, torch.Tensor]:
    """Tensors that the file has and the model has not, float32, by their names there: tables of rotary factors.

    Args:
        config: of the model.

    Raises:
        FormatError: llama.cpp has no such model.
    """
    return architecture_of(config).added(config.get_text_config())


def _add(writer: gguf.GGUFWriter, key: Key, config: Any) -> None:
    value = key.value(config)
    if value is not None:
        getattr(writer, f"add_{key.name}")(value)


def _add_general(
    writer: gguf.GGUFWriter, folder: Path | None, name: str, counted: tuple[int, int, int, int]
) -> None:
    """Name, authors, licence and size: the `gguf` package finds them in a folder."""
    about = gguf.Metadata.load(None, folder, name or None, counted[0])
    about.name = about.name or name or (folder.name if folder is not None else writer.arch)
    if about.size_label is None and counted[0] > 0:
        about.size_label = gguf.size_label(*counted)
    about.set_gguf_meta_model(writer)


def _counted(model: Any, layout: Layout) -> tuple[int, int, int, int]:
    """Numbers in all tensors, in those of everything but experts, in those of experts, and how many experts."""
    writer = gguf.GGUFWriter(None, "")
    for tensor, shape in file_shapes(model, layout).items():
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), 4 * prod(shape))
    counts: tuple[int, int, int, int] = writer.get_total_parameter_count()
    return counts


def file_shapes(model: Any, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a file gets from a model, by its name there.

    Args:
        model: its tensors' names and shapes; they may be absent.
        layout: of the model.
    """
    transposed = transposed_in(model)
    found: dict[str, tuple[int, ...]] = {}
    matrices: dict[str, int] = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.mT.shape if name in transposed else tensor.shape)
        for place in layout[name]:
            inner = shape[1:] if is_stack(name, layout[name]) else shape
            if place.through == "squeezed":
                inner = (inner[0], *inner[2:])
            inner = inner if place.rows is None else (len(place.rows), *inner[1:])
            if place.expert is not None:
                matrices[place.name] = max(matrices.get(place.name, 0), place.expert + 1)
                inner = (matrices[place.name], *inner)
            found[place.name] = inner
    return found
