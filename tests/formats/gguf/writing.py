"""A model as a GGUF file in float32: layout and metadata are Roundel's, the writer is that of the `gguf` package."""

from pathlib import Path

import gguf
import torch
from transformers import PreTrainedModel

from roundel.formats.gguf.architectures import architecture_of
from roundel.formats.gguf.metadata import Metadata, added_tensors, metadata_of
from roundel.formats.gguf.moving import is_stack, moved, transposed_in
from roundel.formats.gguf.placing import layout_of


def file_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every tensor of the file, by its name."""
    layout = layout_of(model, architecture_of(model.config).name)
    transposed = transposed_in(model)
    found: dict[str, torch.Tensor] = {}
    matrices: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.mT if name in transposed else tensor
        for place in layout[name]:
            piece = moved(tensor, place, stacked=is_stack(name, layout[name]))
            if place.expert is None:
                found[place.name] = piece
            else:
                matrices.setdefault(place.name, {})[place.expert] = piece
    for name, pieces in matrices.items():
        found[name] = torch.stack([pieces[number] for number in range(len(pieces))])
    return found | added_tensors(model.config)


def write(model: PreTrainedModel, tokenizer, folder: Path | None, path: Path) -> Path:
    """The file of a model."""
    tensors = file_tensors(model)
    for name in tensors:  # transformers reads it as older converters wrote it only
        if name.endswith("ffn_gate_inp_shexp.weight"):
            tensors[name] = tensors[name].flatten()
    write_file(path, metadata_of(model, tokenizer, folder, name="tiny"), tensors)
    return path


def write_file(path: Path, metadata: Metadata, tensors: dict[str, torch.Tensor]) -> None:
    """A file of given lines and tensors."""
    architecture = next(value for key, value, _ in metadata if key == "general.architecture")
    writer = gguf.GGUFWriter(path, architecture)
    for key, value, kind in metadata:
        if key != "general.architecture":
            writer.add_key_value(key, value, kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
