"""Folders of integers opened as ordinary models: every tensor is decoded when it is read.

Where a model fits into memory, transformers puts the decoded tensors into it as it would those of a checkpoint. Where
it does not, its blocks stay on disk (model/storage.py), and each is decoded when its turn comes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, GenerationConfig

from roundel.errors import ModelError
from roundel.formatting import kind_and_line
from roundel.model.classes import auto_class
from roundel.model.experts import Stack, divide, joined, rejoin, stacks_in
from roundel.model.storage import OnDisk, put
from roundel.model.turns import empty_weights, in_turn


class Stored(Protocol):
    """The tensors of a folder's files, by name."""

    @property
    def names(self) -> set[str]:
        """Of all of them."""
        ...

    def __getitem__(self, name: str) -> torch.Tensor: ...


class Decoded(Mapping[str, torch.Tensor]):
    """The tensors of a folder under the names that a model's state has for them.

    Args:
        stored: the folder's files.
        linears: its quantized Linears.
        decode: the weight of one of them, as its module stores it, in the model's type.
        dtype: the model's.
    """

    def __init__(
        self,
        stored: Stored,
        linears: Collection[str],
        decode: Callable[[str], torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.stored, self.linears, self.decode, self.dtype = stored, set(linears), decode, dtype
        self.stacks: dict[str, Stack] = {}
        self._names = {f"{name}.weight" for name in self.linears}
        self._names |= {name for name in stored.names if name.endswith(".bias") or not self._is_part(name)}

    def __getitem__(self, name: str) -> torch.Tensor:
        stack = self.stacks.get(name)
        if stack is not None and f"{name}.0.weight" in self._names:
            parts = {f"{name}.{index}.weight": self[f"{name}.{index}.weight"] for index in range(len(stack))}
            return joined(parts, {name: stack})[name]
        if name not in self._names:
            raise KeyError(name)
        linear = name.removesuffix(".weight")
        return self.decode(linear) if linear in self.linears and linear != name else self.stored[name]

    def _is_part(self, name: str) -> bool:
        """Whether a tensor is a part of a quantized Linear: `P.codes`, `P.scale.zero`."""
        owner = name
        while owner:
            owner = owner.rpartition(".")[0]
            if owner in self.linears:
                return True
        return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@in_turn
def open_decoded(
    folder: Path, decoded: Decoded, trust_remote_code: bool, *, streamed: bool
) -> tuple[Any, OnDisk | None]:
    """The model of a folder on the CPU, as `from_pretrained` would give it, and where its weights are.

    Args:
        folder: with config.json.
        decoded: its tensors.
        trust_remote_code: run modeling code that comes with the model.
        streamed: leave the weights on disk.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with empty_weights():
            skeleton = auto_class(config, str(folder)).from_config(
                config, trust_remote_code=trust_remote_code, dtype=decoded.dtype
            )
        divide(skeleton)
        decoded.stacks = stacks_in(skeleton)
        if streamed:
            return skeleton.eval().requires_grad_(False), _on_disk(folder, skeleton, decoded)
        rejoin(skeleton)  # the model has its config, and is to compute experts as the original does
        model, info = type(skeleton).from_pretrained(
            None,
            config=config,
            state_dict=joined(dict(decoded.items()), decoded.stacks),
            dtype=decoded.dtype,
            output_loading_info=True,
        )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"{folder} cannot be opened: {kind_and_line(error)}") from error
    _check_missing(folder, info["missing_keys"])
    return model.eval().requires_grad_(False), None


def _on_disk(folder: Path, skeleton: Any, decoded: Decoded) -> OnDisk:
    for name, _ in list(skeleton.named_buffers()):
        if name in decoded:
            put(skeleton, name, decoded[name])
    tied = getattr(skeleton, "all_tied_weights_keys", {})
    tied = {**{source: target for target, source in tied.items()}, **tied}
    absent = [name for name, tensor in skeleton.named_parameters(remove_duplicate=False) if tensor.is_meta]
    held = {*decoded, *(name for name in decoded.stacks if f"{name}.0.weight" in decoded)}
    _check_missing(folder, {name for name in absent if not {name, tied.get(name, name)} & held})
    types = {n: t.dtype for n, t in skeleton.named_parameters(remove_duplicate=False)}
    typed = _Typed(decoded, types)
    return OnDisk({name: (typed, name) for name in absent}, tied)


class _Typed(Mapping[str, torch.Tensor]):
    """Tensors in the types of the model that takes them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], types: Mapping[str, torch.dtype]) -> None:
        self._tensors, self._types = tensors, types

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name].to(self._types[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _check_missing(folder: Path, missing: Collection[str]) -> None:
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError(f"tensors are missing in {folder} ({some}, ...): a whole folder is expected")
