"""The config of an output: the original's own, with what the work has changed, and what older clients read.

transformers writes a config in the words of its own version: keys of other clients go, and a rotary base stands where
no older version looks for it (`rope_parameters` instead of `rope_theta`). So the original's file is taken as it is,
what the work has changed is changed in it, and names of older versions stand beside newer ones.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from roundel.errors import FormatError

_CONFIG = "config.json"
_QUANTIZATION = ("quantization_config", "compression_config")
# What says who wrote a config, from where, and in which form: no part of the model.
_ASIDE = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", *_QUANTIZATION)
_ROPE = "rope_parameters"
Object = dict[str, Any]


def finish_config(folder: Path, source: Path | None, config: Any, trust_remote_code: bool) -> None:
    """Put the original's config in place of the one that transformers wrote.

    Args:
        folder: the output; its config.json says how it is quantized, and in which type it is.
        source: folder of the original with its config.json; None: there is none.
        config: of the model in memory; where it is not what the original's file says, the work has changed it.
        trust_remote_code: as the original was opened.

    Raises:
        FormatError: the file does not say what the model's config says.
    """
    written = _read(folder)
    result = written
    if source is not None and (source / _CONFIG).is_file():
        result = _read(source)
        _carry_changes(result, _opened(source, trust_remote_code), config.to_dict())
        _set_form(result, written)
    # Names that a newer version of some model would take for something else are left out.
    for finished in (_with_older_names(result), result):
        (folder / _CONFIG).write_text(
            json.dumps(finished, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if _says(_opened(folder, trust_remote_code), config.to_dict()):
            return
    raise FormatError("the written config.json does not give the config of the model; please report this")


def _read(folder: Path) -> Object:
    found: Object = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return found


def _opened(folder: Path, trust_remote_code: bool) -> Object:
    found: Object = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code).to_dict()
    return found


def _carry_changes(result: Object, before: Object, after: Object) -> None:
    """Put what differs between two configs into an object that says the former."""
    for key, value in after.items():
        if key in _ASIDE or (key in before and before[key] == value):
            continue
        if (
            isinstance(value, dict)
            and isinstance(before.get(key), dict)
            and isinstance(result.get(key), dict)
        ):
            _carry_changes(result[key], before[key], value)
        else:
            result[key] = deepcopy(value)


def _set_form(result: Object, written: Object) -> None:
    """Type and quantization are as the output has them."""
    inner = result.get("text_config")
    for part in (result, inner if isinstance(inner, dict) else {}):
        for key in _QUANTIZATION:
            part.pop(key, None)
    result |= {key: written[key] for key in _QUANTIZATION if key in written}
    dtype = written.get("dtype") or written.get("torch_dtype")
    if dtype is not None:
        result |= {key: dtype for key in ("dtype", "torch_dtype") if key in result} or {"dtype": dtype}


def _with_older_names(part: Object) -> Object:
    """With the names that versions before transformers 5 read, in this config and in those inside of it."""
    found = {
        k: _with_older_names(v) if isinstance(v, dict) and k.endswith("_config") else v
        for k, v in part.items()
    }
    if found.get("dtype") is not None:
        found.setdefault("torch_dtype", found["dtype"])
    rope = found.get(_ROPE)
    if not isinstance(rope, dict):
        return found
    nested = isinstance(rope.get("full_attention"), dict)
    base = rope["full_attention"] if nested else rope
    local = rope.get("sliding_attention")
    older = {"rope_theta": base.get("rope_theta"), "partial_rotary_factor": base.get("partial_rotary_factor")}
    if isinstance(local, dict):
        older["rope_local_base_freq"] = local.get("rope_theta")
    if found.get("model_type") == "gpt_neox":
        older |= {"rotary_emb_base": base.get("rope_theta"), "rotary_pct": base.get("partial_rotary_factor")}
    for name, value in older.items():
        if value is not None:
            found.setdefault(name, value)
    if base.get("rope_type", "default") != "default":
        found.setdefault("rope_scaling", {k: v for k, v in base.items() if k not in older})
    return found


def _says(found: Object, wanted: Object) -> bool:
    """Whether a config says what another one says; it may say more, in names that nobody reads there."""
    for key, value in wanted.items():
        if key in _ASIDE:
            continue
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            if not _says(found[key], value):
                return False
        elif key not in found or found[key] != value:
            return False
    return True
