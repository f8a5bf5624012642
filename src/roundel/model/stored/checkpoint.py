"""The files of a quantized model as an ordinary checkpoint: names, shapes, dense tensors when they are asked for."""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from roundel.errors import ModelError
from roundel.model.checkpoint import Entry, check_types, read_header, weight_files
from roundel.model.stored.form import Form, Packed

_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


class StoredCheckpoint(Mapping[str, torch.Tensor]):
    """Dense tensors under the names that an unquantized checkpoint would have for them.

    Args:
        folder: of the model.
        form: how its weights are stored.
        dtype: of the dense weights; None: that of the first tensor that is stored in 16 bits as it is, else bfloat16.

    Raises:
        ModelError: files are damaged, or tensors are absent without which a weight cannot be read.
    """

    def __init__(self, folder: Path, form: Form, dtype: torch.dtype | None) -> None:
        self.folder, self.form = folder, form
        self._home: dict[str, Path] = {}
        self._files: dict[Path, Any] = {}
        stored: dict[str, Entry] = {}
        for path in weight_files(folder, allow_pickle=False):
            header = read_header(path)
            stored |= header
            self._home |= dict.fromkeys(header, path)
        self._packed: dict[str, Packed] = form.weights(stored, self._stored)
        if not self._packed:
            raise ModelError(
                f"by the config in {folder} the model is stored in {form.summary}, and no weight in its files is: the "
                "config.json that came with the weights is expected"
            )
        parts = {part for packed in self._packed.values() for part in packed.parts.values()}
        self._plain = {
            name: entry for name, entry in stored.items() if name not in parts and not form.is_beside(name)
        }
        for path in set(self._home.values()):
            check_types(
                path, {name: entry for name, entry in self._plain.items() if self._home[name] == path}
            )
        found = (_HALVES.get(entry.dtype) for entry in self._plain.values())
        self.dtype = dtype or next(filter(None, found), torch.bfloat16)

    @property
    def summary(self) -> str:
        """What is read, in a sentence."""
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"read from {self.form.summary}, dequantized into {kind}; the original is no full-precision model"
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors."""
        plain = {name: entry.shape for name, entry in self._plain.items()}
        return plain | {name: packed.shape for name, packed in self._packed.items()}

    def size(self, name: str) -> int:
        """Bytes of a dense tensor."""
        if name in self._packed:
            return prod(self._packed[name].shape) * self.dtype.itemsize
        return self._plain[name].end - self._plain[name].begin

    def __getitem__(self, name: str) -> torch.Tensor:
        packed = self._packed.get(name)
        if packed is None:
            if name not in self._plain:
                raise KeyError(name)
            return self._stored(name)
        parts = {part: self._stored(stored) for part, stored in packed.parts.items()}
        # In memory as a module has it: products of transposed matrices are rounded otherwise.
        dense = self.form.decode(name, parts, self.dtype).to(self.dtype).contiguous()
        if tuple(dense.shape) != packed.shape:
            raise ModelError(
                f"{name} becomes {tuple(dense.shape)}, and by its stored shape {packed.shape} is expected: copy or "
                "download the model again"
            )
        return dense

    def __iter__(self) -> Iterator[str]:
        return iter({**self._plain, **self._packed})

    def __len__(self) -> int:
        return len(self._plain) + len(self._packed)

    def _stored(self, name: str) -> torch.Tensor:
        path = self._home[name]
        try:
            if path not in self._files:
                self._files[path] = safe_open(path, "pt")
            tensor: torch.Tensor = self._files[path].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{name} can no longer be read from {path} ({error})") from error
        return tensor
