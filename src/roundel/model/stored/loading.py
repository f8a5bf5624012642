"""A model of a quantized checkpoint, with its weights in memory or where they are stored."""

import re
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.core_model_loading import build_glob_alternation

from roundel.model.storage import InMemory, OnDisk, Storage, put
from roundel.model.stored.checkpoint import StoredCheckpoint
from roundel.model.stored.conversion import Converted


def load_stored(
    model: Any, checkpoint: StoredCheckpoint, *, streamed: bool
) -> tuple[Storage, dict[str, Any]]:
    """Give a model without weights those of a checkpoint.

    Args:
        model: its parameters are absent, its buffers are there.
        checkpoint: what it is to have.
        streamed: leave the parameters where they are, until they are needed.

    Returns:
        Where the weights are, and what transformers calls loading info: `missing_keys`, and `mismatched_keys` with the
        shapes found and wanted.
    """
    _keep_wide(model, checkpoint.dtype)
    converted = Converted(model, checkpoint)
    tied = {
        **{source: target for target, source in model.all_tied_weights_keys.items()},
        **model.all_tied_weights_keys,
    }
    state = model.state_dict()
    mismatched: list[tuple[str, torch.Size, torch.Size]] = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, like in state.items():
        if name in converted and not (streamed and name in parameters):
            tensor = converted[name]
            if tensor.shape != like.shape:
                mismatched.append((name, tensor.shape, like.shape))
            else:
                put(model, name, tensor)
    held = {*converted}
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_missing or ["(?!)"]))
    missing = [n for n in state if not {n, tied.get(n, n)} & held and not ignored.search(n)]
    storage: Storage = InMemory()
    if streamed:
        absent = [name for name, tensor in parameters.items() if tensor.is_meta]
        storage = OnDisk({name: (converted, name) for name in absent}, tied)
    elif not missing and not mismatched:
        model.tie_weights()
    if (checkpoint.folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(str(checkpoint.folder))
    return storage, {"missing_keys": missing, "mismatched_keys": mismatched}


def _keep_wide(model: Any, dtype: torch.dtype) -> None:
    """Parameters that transformers keeps in float32 whatever the model's type."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    pattern, by_group, _ = build_glob_alternation(list(plan))
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        match = pattern.search(name)
        if match is not None and match.lastgroup is not None:
            put(model, name, tensor.to(plan[by_group[match.lastgroup]]))
