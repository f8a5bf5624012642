"""PEFT adapters: small tensors beside a base model, merged into it before anything else is done.

An adapter's folder names its base and how its tensors change it (LoRA, arXiv 2106.09685: W + s B A; DoRA, rsLoRA, IA3
and others). The library `peft` does the merging, in the base's type, with the base in memory as a whole.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from roundel.errors import ModelError
from roundel.formatting import kind_and_line
from roundel.model.checkpoint import PICKLES, SAFETENSORS, is_own, read_header
from roundel.model.place import Place

CONFIG = "adapter_config.json"
_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_FAULTS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder.

    Attributes:
        name: as it was named.
        folder: where its files are.
        kind: in peft's word.
        base: folder or hub id of its base model.
    """

    name: str
    folder: Path
    kind: str
    base: str

    @property
    def summary(self) -> str:
        """What it was made into."""
        kind = "LoRA" if self.kind == "LORA" else self.kind
        return f"a {kind} adapter, {self.name}, merged into {self.base}"


def find_adapter(place: Place, base: str | None) -> Adapter | None:
    """The adapter that a folder holds; None where it is something else.

    Args:
        place: what was named as the model.
        base: its base model, instead of the one that it names.

    Raises:
        ModelError: its config makes no sense, it names no base, or it cannot be merged.
    """
    path = place.path
    if not (path / CONFIG).is_file() or holds_whole_model(path):
        return None
    return _read(place.name, path / CONFIG, base)


def holds_whole_model(folder: Path) -> bool:
    """Whether there are a config and weights in a folder, whatever lies beside them."""
    weights = (*SAFETENSORS, *PICKLES)
    return is_own(folder) or (
        (folder / "config.json").is_file() and any((folder / name).exists() for name in weights)
    )


def _read(source: str, file: Path, base: str | None) -> Adapter:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}): a JSON file is expected") from error
    kind = about.get("peft_type") if isinstance(about, dict) else None
    if not isinstance(kind, str):
        raise ModelError(f"{file} names no peft_type: the file that came with the adapter is expected")
    task = about.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{source} is an adapter for the task {task}: one of a causal language model (CAUSAL_LM) is expected"
        )
    named = base or about.get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip():
        raise ModelError(
            f"{source} is an adapter that names no base model: pass it with --base (base=), a folder or a hub id"
        )
    if not base and not Path(named).expanduser().exists():
        beside, revision = file.parent / named, about.get("revision")
        if beside.is_dir():
            named = str(beside)
        elif isinstance(revision, str) and revision:
            named = f"{named}@{revision}"
    return Adapter(source, file.parent, kind, named)


def check_peft(adapter: Adapter) -> None:
    """Raise ModelError where the library is not installed."""
    if find_spec("peft") is None:
        raise ModelError(
            f"{adapter.name} is a PEFT adapter ({adapter.kind}) of {adapter.base}, no whole model: to merge it into "
            "its base, install peft (pip install 'roundel[peft]'); or merge it yourself and name the result"
        )


def merge_adapter(model: Any, adapter: Adapter, *, allow_pickle: bool) -> nn.Module:
    """A base model in memory, with an adapter merged into it.

    Args:
        model: the base, which is used up.
        adapter: of it.
        allow_pickle: read `adapter_model.bin`.

    Raises:
        ModelError: the adapter is damaged, does not fit the base, or is of a kind that cannot be merged.
    """
    check_peft(adapter)
    stored = _stored(adapter, allow_pickle)
    with _explained(adapter):
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict

        config: Any = PeftConfig.from_pretrained(str(adapter.folder))
        if config.is_prompt_learning:
            raise ModelError(
                f"{adapter.name} is an adapter of the kind {adapter.kind}, which puts learned vectors in front of the "
                "text and leaves the weights alone: there is nothing to merge; quantize the base, and use the adapter "
                "with it"
            )
        _make_room(model, stored)
        _untie(model, config, stored)
        tuned = PeftModel.from_pretrained(model, str(adapter.folder), config=config)
        known = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
        around = {name for name in stored if _layer(name) in _embeddings(model)}
        _check_names(adapter, known, set(stored), around)
        merge = getattr(tuned.base_model, "merge_and_unload", None)
        if merge is None or getattr(config, "alora_invocation_tokens", None):
            raise ModelError(
                f"{adapter.name} is an adapter of the kind {adapter.kind}, which cannot be merged into weights: "
                "quantize the base, and use the adapter with it"
            )
        merged: Any = merge(safe_merge=True)
    merged.__dict__.pop("peft_config", None)
    _tell_untied(merged)
    merged.eval().requires_grad_(False)
    return merged  # type: ignore[no-any-return]


@contextmanager
def _explained(adapter: Adapter) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is looked at here
            yield
    except _FAULTS as error:
        raise ModelError(
            f"the adapter {adapter.name} cannot be merged into {adapter.base} ({kind_and_line(error)}): "
            "the base that it was trained on is expected; another one can be named with --base (base=)"
        ) from error


def _stored(adapter: Adapter, allow_pickle: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter's tensors by their names."""
    safe, pickled = adapter.folder / _WEIGHTS, adapter.folder / _PICKLED
    if safe.is_file():
        return {name: entry.shape for name, entry in read_header(safe).items()}
    if not pickled.is_file():
        raise ModelError(
            f"no {_WEIGHTS} in {adapter.folder}: the adapter's weights are expected beside its config"
        )
    if not allow_pickle:
        raise ModelError(
            f"{adapter.folder} holds pickled weights only, which can carry code: {_WEIGHTS} is expected. Convert them, "
            "or pass --allow-pickle (they are then read with weights_only)"
        )
    with _explained(adapter):
        tensors = torch.load(pickled, weights_only=True, map_location="cpu")
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _layer(name: str) -> str:
    """The last name of the module that a tensor of an adapter belongs to: `lm_head`, `embed_tokens`."""
    inner = ("weight", "bias", "base_layer", "modules_to_save", "original_module", "default")
    parts = [
        part for part in name.split(".") if part not in inner and not part.startswith(("lora_", "trainable_"))
    ]
    return parts[-1] if parts else ""


def _embeddings(model: Any) -> set[str]:
    """The last names of embedding and head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if any(module is end for end in ends)
    }


def _make_room(model: Any, stored: dict[str, tuple[int, ...]]) -> None:
    """Give a base as many tokens as its adapter was trained with."""
    names = _embeddings(model)
    rows = [0]
    for name, shape in stored.items():
        if _layer(name) not in names or len(shape) != 2:
            continue
        if name.endswith("lora_embedding_A"):
            rows.append(shape[1])
        elif name.endswith("lora_embedding_B") or ".lora_A" in name or "trainable_tokens" in name:
            continue
        else:
            rows.append(shape[0])
    if max(rows) and max(rows) != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def _untie(model: Any, config: Any, stored: dict[str, tuple[int, ...]]) -> None:
    """What is merged into one of two tied matrices must not change the other, unless the adapter says so."""
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return
    if getattr(config, "ensure_weight_tying", False):
        return
    if any(_layer(name) in _embeddings(model) for name in stored):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _tell_untied(model: Any) -> None:
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        for config in (model.config, model.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False


def _check_names(adapter: Adapter, known: set[str], stored: set[str], around: set[str]) -> None:
    for found, what in (
        (known - stored, "is missing in"),
        (stored - known - around, "has no place in the base of"),
    ):
        if found:
            raise ModelError(
                f"{min(found)} {what} the adapter {adapter.name}: the base that it was trained on is expected, "
                f"{adapter.base} does not fit; another one can be named with --base (base=)"
            )
