"""What a GGUF file holds beside the weights: metadata, names, tables; and where they come from.

the model came from a GGUF file     from that file, as they are; and so does every tensor that is not quantized
--like base.gguf                    from that file, which llama.cpp's converter made of the same model
anything else                       from its config and tokenizer, as llama.cpp's converter would have them
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType, LlamaFileType

from roundel.errors import FormatError
from roundel.formats.gguf.architectures import architecture_of
from roundel.formats.gguf.checking import check_read, left_over
from roundel.formats.gguf.file import Field, FileTensor, GgufFile, Table, open_file
from roundel.formats.gguf.layout import Layout
from roundel.formats.gguf.metadata import added_tensors, metadata_of
from roundel.formats.gguf.placing import layout_of
from roundel.formats.source_files import SourceFiles

_FILE_TYPE = "general.file_type"
_VERSION = "general.quantization_version"
# Says how the file was quantized that ours was made from.
_OUTDATED = "quantize."
# Tensors that are no weights: factors of rotary embeddings.
_TABLES = "rope_"


@dataclass(frozen=True)
class Base:
    """Everything but the weights.

    Attributes:
        fields: the metadata.
        layout: where the model's tensors go.
        order: names of tensors, as the file should have them.
        kept: the file that the model came from; None: it came from elsewhere.
        tables: tensors that the file has and the model has not.
    """

    fields: list[Field]
    layout: Layout
    order: list[str] = field(default_factory=list)
    kept: GgufFile | None = None
    tables: list[Table] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The model's, fit for a file; empty where nobody says it."""
        values = {f.key: f.value for f in self.fields}
        found = str(values.get("general.basename") or values.get("general.name") or "")
        size = str(values.get("general.size_label") or "") if values.get("general.basename") else ""
        words = "-".join(word for word in (found, size) if word)
        return "".join(c if c.isalnum() or c in "-._" else "-" for c in words).strip("-.")

    def fields_for(self, kind: str) -> list[Field]:
        """The metadata of a file of some type or mixture, `q4_k_m` for example."""
        ours = {
            _FILE_TYPE: Field(_FILE_TYPE, _file_type(kind), GGUFValueType.UINT32),
            _VERSION: Field(_VERSION, 2, GGUFValueType.UINT32),
        }
        kept = [f for f in self.fields if not f.key.startswith(_OUTDATED)]
        changed = [ours.pop(f.key, f) if f.key in ours else f for f in kept]
        return [*changed, *ours.values()]


def base_for(model: Any, files: SourceFiles) -> Base:
    """Find it.

    Args:
        model: its config, and its tensors' names and shapes.
        files: that it came from.

    Raises:
        FormatError: there is nothing to take it from, or it is of another model.
    """
    if files.like is not None:
        return _like(model, open_file(files.like))
    if files.place is not None and files.place.gguf is not None:
        file = open_file(files.place.gguf)
        layout = layout_of(model, file.arch)
        over = left_over(layout, file.tensors)
        check_read(over, model.config.get_text_config().num_hidden_layers)
        tables = [file.table(name) for name in over]
        return Base(file.fields, layout, list(file.tensors), file, tables)
    return _converted(model, files)


def _converted(model: Any, files: SourceFiles) -> Base:
    layout = layout_of(model, architecture_of(model.config).name)
    if files.tokenizer is None:
        raise FormatError(
            "a GGUF file holds the tokenizer, and this model has none: give one (tokenizer=), or a file that "
            "llama.cpp's converter made of the same model (--like base.gguf)"
        )
    folder = None if files.place is None else files.place.folder
    fields = [Field(*line) for line in metadata_of(model, files.tokenizer, folder)]
    tables = [
        Table(FileTensor(name, tuple(tensor.shape), Kind.F32), tensor.contiguous().view(-1).view(torch.uint8))
        for name, tensor in added_tensors(model.config).items()
    ]
    return Base(fields, layout, [], None, tables)


def _like(model: Any, file: GgufFile) -> Base:
    layout = layout_of(model, file.arch)
    over = left_over(layout, file.tensors)
    weights = [name for name in over if not name.startswith(_TABLES)]
    wanted = {place.name for places in layout.values() for place in places}
    missing = sorted(wanted - file.tensors.keys())
    if weights or missing:
        found = f"it has {weights[0]}, which the model has not" if weights else f"it has no {missing[0]}"
        raise FormatError(
            f"{file.path} is not of the same model: {found}; a file that llama.cpp's converter made of it is expected"
        )
    return Base(file.fields, layout, list(file.tensors), None, [file.table(name) for name in over])


def _file_type(kind: str) -> int:
    """As llama.cpp numbers files: by its mixtures, the plainest of which is for a type alone.

    A mixture of ours has the number of the one whose size it has.
    """
    plainest = {"q3_k": "q3_k_s", "q4_k": "q4_k_s", "q5_k": "q5_k_s"}
    same_size = kind.removeprefix("even_")
    name = plainest.get(same_size, same_size).upper()
    return int(LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"])
