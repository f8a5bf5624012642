"""The types in which a checkpoint stores its tensors.

A model computes in one type, a checkpoint may hold several: norms or routers in float32 among weights in bfloat16. What
was not changed goes into the output with the bytes that the source has.
"""

from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from roundel.model.checkpoint import Entry, read_header, weight_files
from roundel.model.names import loaded_names

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# In which weights are plain numbers.
PLAIN_TYPES = tuple(_FLOATS.values())


def prevailing_type(folder: Path) -> torch.dtype | None:
    """In which most weights are stored; None where there are no safetensors with floating point.

    Raises:
        ModelError: a file is damaged.
    """
    counts: Counter[str] = Counter()
    for path in _safetensors(folder):
        for entry in read_header(path).values():
            if entry.dtype in _FLOATS:
                counts[entry.dtype] += prod(entry.shape)
    return _FLOATS[counts.most_common(1)[0][0]] if counts else None


class StoredTypes:
    """Gives tensors of a model the type, and if they are unchanged the bytes, that they have in its checkpoint.

    Args:
        model: its names and shapes; tensors may be absent.
        folder: of its checkpoint; None: there is none.
        files: of its checkpoint, where they have other names than transformers looks for.

    Raises:
        ModelError: a file is damaged.
    """

    def __init__(self, model: Any, folder: Path | None, files: Iterable[Path] = ()) -> None:
        self._homes: dict[str, tuple[Path, str, torch.dtype]] = {}
        types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        for path in (*files, *(_safetensors(folder) if folder is not None else ())):
            header: dict[str, Entry] = read_header(path)
            for stored, name in loaded_names(model, header).items():
                dtype = _FLOATS.get(header[stored].dtype)
                if dtype is not None and name in types and dtype != types[name]:
                    self._homes[name] = path, stored, dtype

    def restored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the model, by its name, as the checkpoint has it.

        One that was changed gets the checkpoint's type where that holds every value of the model's.
        """
        if name not in self._homes:
            return tensor
        path, stored, dtype = self._homes[name]
        with safe_open(path, "pt") as file:
            original: torch.Tensor = file.get_tensor(stored)
        if original.shape == tensor.shape and torch.equal(original.to(tensor.dtype), tensor):
            return original
        return tensor.to(dtype) if torch.promote_types(dtype, tensor.dtype) == dtype else tensor


def _safetensors(folder: Path) -> list[Path]:
    """The weight files, if they are safetensors."""
    return [path for path in weight_files(folder, allow_pickle=True) if path.suffix == ".safetensors"]
