"""Tensors of a checkpoint for which the model class has no place.

Checkpoints hold more than transformers runs: the layers with which GLM-4.5, DeepSeek-V3 and Qwen3-Next predict several
tokens at once (arXiv 2412.19437, section 2.2), value heads. transformers passes them over, some without a word. Other
clients want them, speculative decoding for one: they go into the output as they are. Inside a decoder block they would
be part of what the block computes, a bias that the config does not announce for one: such a model is another than the
one that transformers runs, and is refused.

Which tensor has a place is not written down here a second time: transformers itself is asked under which name of the
model it would load each one. A buffer that the class computes by itself has a place though nothing is loaded into it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from roundel.errors import ModelError
from roundel.model.blocks import BlockStack
from roundel.model.checkpoint import read_header, weight_files
from roundel.model.stored import StoredCheckpoint

_SAFE = ".safetensors"
# How many layers behind the decoder blocks predict further tokens, in the words of the configs that have them.
_PREDICTION_LAYERS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "num_mtp_modules",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
)
# What older versions of transformers saved of masks and rotary tables; scales of a quantized KV cache.
_IDLE = (
    r"\.(inv_freq|cos_cached|sin_cached|masked_bias|causal_mask)$",
    r"\.(attn|attention|self_attn|self_attention)\.bias$",
    r"\.[kvq]_(proj\.)?(output_|cache_)?scale$|\.[kvq]_proj\.[kvq]_scale$|\.attn\.[kvq]_scale$",
)


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its file, its shape, its bytes."""

    file: Path
    shape: tuple[int, ...]
    size: int


class ExtraTensors(Mapping[str, torch.Tensor]):
    """Tensors by their names in the checkpoint, read when they are asked for.

    Args:
        places: where each of them is.
        reported: the names by which transformers calls them unexpected.
        dense: reads those of a quantized checkpoint, where a tensor may be made of several; None: of an ordinary one.
    """

    def __init__(
        self,
        places: Mapping[str, Place] | None = None,
        reported: Iterable[str] = (),
        dense: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._places, self.reported, self._dense = dict(places or {}), frozenset(reported), dense

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._places[name].file
        if self._dense is not None:
            return self._dense[name].contiguous()
        try:
            if path.suffix != _SAFE:
                return _unpickled(path)[name].contiguous()
            with safe_open(path, "pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(f"{name} can no longer be read from {path} ({error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each."""
        return {name: place.shape for name, place in self._places.items()}

    @property
    def bytes(self) -> int:
        """Of all."""
        return sum(place.size for place in self._places.values())

    @property
    def linears(self) -> list[str]:
        """Names of the modules that other clients may build of its matrices."""
        matrices = (name for name, place in self._places.items() if len(place.shape) == 2)
        return [name.removesuffix(".weight") for name in matrices if name.endswith(".weight")]

    @property
    def summary(self) -> str:
        """How many, and some of them by name."""
        some = ", ".join(list(self)[:3]) + (", ..." if len(self) > 3 else "")
        return f"{len(self)} tensors ({some})" if len(self) > 1 else f"the tensor {some}"


def find_extra_tensors(
    model: Any, folder: Path, *, allow_pickle: bool = False, stored: StoredCheckpoint | None = None
) -> ExtraTensors:
    """Look for them in the headers of the weight files.

    Args:
        model: names are looked at; tensors may be absent.
        folder: from which it was opened.
        allow_pickle: it may have been read from pickled files.
        stored: the checkpoint, if it is a quantized one.

    Raises:
        ModelError: a file is damaged.
    """
    if stored is not None:
        shapes = stored.shapes.items()
        return _unplaced(
            model, [{n: Place(stored.folder, shape, stored.size(n)) for n, shape in shapes}], stored
        )
    return _unplaced(model, map(_stored, weight_files(folder, allow_pickle=allow_pickle)), None)


def extra_among(
    model: Any, tensors: Mapping[str, torch.Tensor], asked: Iterable[str], folder: Path
) -> ExtraTensors:
    """Those of a mapping whose names are of no tensor of the model.

    Args:
        model: names are looked at; tensors may be absent.
        tensors: those that have no place are read, for their shapes.
        asked: which of them are looked at.
        folder: where they are.
    """
    names = _Names(model)
    reported = {name: names.unplaced(name) for name in sorted(asked)}
    found = {name: tensors[name] for name, unplaced in reported.items() if unplaced}
    places = {name: Place(folder, tuple(tensor.shape), tensor.nbytes) for name, tensor in found.items()}
    return ExtraTensors(places, set().union(*reported.values()), tensors)


def _unplaced(
    model: Any, files: Iterable[Mapping[str, Place]], dense: Mapping[str, torch.Tensor] | None
) -> ExtraTensors:
    names = _Names(model)
    places: dict[str, Place] = {}
    reported: set[str] = set()
    for file in files:
        for name, place in file.items():
            unplaced = names.unplaced(name)
            if unplaced:
                places[name] = place
                reported |= unplaced
    return ExtraTensors(places, reported, dense)


def check_blocks(source: str, stack: BlockStack, extra: ExtraTensors, model: Any) -> None:
    """The checkpoint must not have more in the model's blocks than the model, nor more blocks.

    Further blocks are welcome where they predict further tokens.

    Args:
        source: the model's name.
        stack: its decoder blocks.
        extra: what has no place in it.
        model: its class and config.

    Raises:
        ModelError: names a tensor of a block for which there is no place.
    """
    config = model.config.get_text_config()
    counts = [getattr(config, key, None) for key in _PREDICTION_LAYERS]
    more = max((count for count in counts if isinstance(count, int)), default=0)
    pattern = re.compile(re.escape(stack.name) + r"\.(\d+)\.")
    for name in sorted({*extra, *extra.reported}):
        match = pattern.match(name)
        if match and int(match[1]) >= len(stack) + more:
            found = f"{len(stack)} blocks" + (f" and {more} more that predict further tokens" if more else "")
            raise ModelError(
                f"{source} holds {name}, and by config.json the model has {found}: take the config that came with the "
                "weights"
            )
        if match and int(match[1]) < len(stack) and not _is_idle(name, model):
            raise ModelError(
                f"{source} holds {name}, inside a decoder block for which {type(model).__name__} computes nothing with "
                "it: the config that came with the weights, which announces it, or the model's own code is expected"
            )


def _is_idle(name: str, model: Any) -> bool:
    """Whether a tensor of a block is none that the block computes with: a table, a mask, a scale for serving."""
    ignored = getattr(type(model), "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in (*_IDLE, *ignored))


class _Names:
    """Under which names transformers loads the tensors of a checkpoint."""

    def __init__(self, model: Any) -> None:
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._targets = {
            pattern: entry.target_patterns for entry in self._converters for pattern in entry.source_patterns
        }
        self._prefix = model.base_model_prefix
        self._known = {**model.state_dict(), **dict(model.named_buffers())}

    def unplaced(self, name: str) -> set[str]:
        """The names of the model under which a tensor is looked for in vain; none if it has a place."""
        found, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._known)
        if found in self._known or name in self._known:
            return set()
        if pattern is None:
            return {found}
        first, *others = self._targets[pattern]
        return {found, *(found.replace(first, other) for other in others)}


def _stored(path: Path) -> dict[str, Place]:
    """The tensors of a weight file."""
    if path.suffix == _SAFE:
        header = read_header(path).items()
        return {name: Place(path, entry.shape, entry.end - entry.begin) for name, entry in header}
    return {name: Place(path, tuple(t.shape), t.nbytes) for name, t in _unpickled(path).items()}


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled file, mapped into memory where its form allows it."""
    try:
        found: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except RuntimeError:  # of a form older than torch 1.6
        found = torch.load(path, weights_only=True, map_location="cpu")
    return found
