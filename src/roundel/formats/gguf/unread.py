"""Settings of a GGUF file that transformers does not take over when it reads one.

The file that is written has them all the same; but while weights are tuned and measured, the model runs without them.
"""

from typing import Any

from roundel.formats.gguf.file import GgufFile

_TABLE = "rope_freqs.weight"


def unread_settings(file: GgufFile, config: Any) -> str:
    """What the opened model lacks, in a sentence; empty where it lacks nothing that is known to matter.

    Args:
        file: that the model was read from.
        config: of the model.
    """
    config = config.get_text_config()
    found = {field.key.removeprefix(f"{file.arch}."): field.value for field in file.fields}
    rope = getattr(config, "rope_parameters", None) or {}
    scaled = found.get("rope.scaling.type", "none") not in ("none", "") or _TABLE in file.tensors
    missing = []
    if scaled and rope.get("rope_type", "default") == "default":
        missing.append("the scaling of its rotary embedding")
    if found.get("attention.sliding_window") and not getattr(config, "sliding_window", None):
        missing.append("the sliding window of its attention")
    if not missing:
        return ""
    return (
        f"transformers reads {file.path.name} without {' and '.join(missing)}: weights are tuned and measured so, "
        "which tells on long texts; the model's folder of safetensors has it"
    )
