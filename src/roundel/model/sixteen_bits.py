"""A model that was read from a GGUF file, on its way into another format.

transformers dequantizes such a file into float32. Where it was quantized, no number in it was finer than 16 bits: its
scales are float16. Written in 32, the output would be larger than the file, and clients would compute in a type that
nobody serves in. A file of float32 stays one.
"""

from typing import Any

import torch
from gguf import GGMLQuantizationType as Kind

from roundel.model.hints import TOO_LARGE_FOR_HALF


def in_stored_type(model: Any, kinds: set[Kind]) -> str:
    """Convert a model in place to a type of 16 bits, if its file was no finer.

    float16 is finer; it is bfloat16 where the file has it, or the architecture's activations are known to exceed
    float16.

    Args:
        model: as it was read.
        kinds: how the matrices of its GGUF file are stored.

    Returns:
        What was done, in words; nothing where nothing was.
    """
    dtype = type_of_file(model, kinds)
    if dtype is None:
        return ""
    convert(model, dtype)
    return f"What is not quantized will be in {str(dtype).removeprefix('torch.')}: the GGUF file was no finer"


def type_of_file(model: Any, kinds: set[Kind]) -> torch.dtype | None:
    """The type of 16 bits that a GGUF file was no finer than; None: it is one of float32."""
    if kinds <= {Kind.F32}:
        return None
    bfloat16 = kinds <= {Kind.F32, Kind.BF16} or (
        model.config.get_text_config().model_type in TOO_LARGE_FOR_HALF
    )
    return torch.bfloat16 if bfloat16 else torch.float16


def convert(model: Any, dtype: torch.dtype) -> None:
    """Convert a model in place, and what its config says of it."""
    model.to(dtype)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.dtype = dtype
