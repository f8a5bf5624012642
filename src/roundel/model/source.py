"""Opening a source model: a local folder, a GGUF file or a hub id.

transformers does the reading; this file decides what may be read and turns every way in which it can fail
into one clear error.
"""

import json
import logging
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from roundel.errors import ModelError
from roundel.model.blocks import find_blocks
from roundel.model.storage import InMemory, Storage, device_map, take_off_hooks

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")


@dataclass
class SourceModel:
    """An opened model with its tokenizer (None where the source has none), and where its blocks' weights are."""

    name: str
    model: Any
    tokenizer: Any | None
    storage: Storage = field(default_factory=InMemory)


def open_source(
    source: str,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    quantized: bool = False,
    stream_with: Path | None = None,
) -> SourceModel:
    """Open a causal language model on the CPU, in the type in which it is stored.

    Args:
        source: folder with config.json and safetensors, a .gguf file (read into fp32), or a hub id.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read `pytorch_model.bin`, with `weights_only`.
        quantized: open quantized models too (to measure or to run them, not to quantize them again).
        stream_with: leave the blocks of a safetensors checkpoint on disk; a folder for tensors that are not in the
            checkpoint as the model has them. GGUF and pickled files are read whole all the same.

    Raises:
        ModelError: with what was found, what is wanted and what to do.
    """
    where: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no file {source}: the path of a GGUF file is wanted")
        location = str(path.parent)
        where["gguf_file"] = path.name
    elif path.is_dir():
        _check_folder(path, allow_pickle)
        location = str(path)
    elif path.exists():
        raise ModelError(f"{source} is a file: a model folder, a .gguf file or a hub id is wanted")
    elif _is_hub_id(source):
        location = source
    else:
        raise ModelError(f"no folder {source}: a model folder, a .gguf file or a hub id is wanted")

    config = _open_config(source, location, where)
    if not quantized and getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{source} is quantized already: the original, unquantized model is wanted")
    options: dict[str, Any] = {"use_safetensors": None if allow_pickle else True}
    if stream_with is not None and "gguf_file" not in where and not allow_pickle:
        skeleton = _skeleton(source, config, trust_remote_code)
        # It tells of absent tensors, which is what was asked for.
        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
        options["device_map"] = device_map(skeleton, find_blocks(skeleton))
        options["offload_folder"] = str(stream_with)
    model = _open_weights(source, location, config, where, options)
    storage: Storage = take_off_hooks(model) if "device_map" in options else InMemory()
    return SourceModel(source, model, open_tokenizer(location, **where), storage)


def fingerprint(model: nn.Module, storage: Storage | None = None) -> str:
    """Hash of all parameters and buffers that a checkpoint stores: names, types, shapes, bytes."""
    digest = blake2b(digest_size=16)
    for name, tensor in (storage or InMemory()).tensors(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _skeleton(source: str, config: Any, trust_remote_code: bool) -> nn.Module:
    """The modules of a model, without weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"the model of {source} cannot be built: {first_line(error)}") from error


def _is_hub_id(source: str) -> bool:
    return source.count("/") <= 1 and not source.startswith((".", "/", "~")) and "\\" not in source


def _check_folder(path: Path, allow_pickle: bool) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise ModelError(f"no config.json in {path}: a Hugging Face model folder is wanted")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{config} cannot be read ({error}): a JSON file is wanted") from error
    if any((path / name).is_file() for name in _SAFETENSORS):
        return
    if not any((path / name).is_file() for name in _PICKLES):
        raise ModelError(f"no weights in {path}: model.safetensors, one file or sharded, is wanted")
    if not allow_pickle:
        raise ModelError(
            f"{path} holds pickled weights only, which can carry code: safetensors are wanted. "
            "Convert them, or pass --allow-pickle (they are then read with weights_only)"
        )


def _open_config(source: str, location: str, where: dict[str, Any]) -> Any:
    try:
        config = AutoConfig.from_pretrained(location, **where)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source} comes with its own modeling code, which is not run unless you trust it: "
                "read it, then pass --trust-remote-code"
            ) from error
        found = f"{source} cannot be opened"
        if location == source and not Path(source).exists():
            found = f"there is no folder {source}, and as a hub id it cannot be opened"
        raise ModelError(f"{found}: {first_line(error)}") from error
    if not _is_causal(config):
        kind = ", ".join(config.architectures or []) or f"model type {config.model_type!r}"
        raise ModelError(
            f"{source} is no causal language model ({kind}): "
            "a decoder that transformers' AutoModelForCausalLM knows is wanted"
        )
    return config


def _is_causal(config: Any) -> bool:
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return True
    names = config.architectures or []
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and (not names or any(n in known for n in names))


def _open_weights(
    source: str, location: str, config: Any, where: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    if "gguf_file" not in where:
        options = {**options, "config": config}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            location,
            **where,
            **options,
            dtype=torch.float32 if "gguf_file" in where else "auto",
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"the weights of {source} cannot be read: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:3])
        raise ModelError(
            f"{len(missing)} tensors are missing in {source} ({some}, ...): a whole model is wanted"
        )
    if "gguf_file" in where:
        _forget_gguf(model)
    model.eval().requires_grad_(False)
    return model  # type: ignore[no-any-return]


def _forget_gguf(model: Any) -> None:
    """The weights are dequantized now; without the marks of a quantized model it can be saved again."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def open_tokenizer(location: str, trust_remote_code: bool = False, **where: Any) -> Any | None:
    """The tokenizer of a folder or hub id, or None where there is none."""
    where["trust_remote_code"] = trust_remote_code
    try:
        return AutoTokenizer.from_pretrained(location, **where)
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        # Quantizing from token ids needs no tokenizer; whoever needs one says so then.
        return None


def first_line(error: BaseException) -> str:
    """An exception in one line, for a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
