"""The architectures that a GGUF file of Roundel can have: facts of llama.cpp, as data."""

from typing import Any

from roundel.errors import FormatError
from roundel.formats.gguf.architectures.architecture import Architecture, scaling_of
from roundel.formats.gguf.architectures.gemma import GEMMA
from roundel.formats.gguf.architectures.gpt import GPT, MAMBA
from roundel.formats.gguf.architectures.llama_like import LLAMA_LIKE
from roundel.formats.gguf.architectures.others import OTHERS
from roundel.formats.gguf.architectures.qwen import QWEN
from roundel.formats.gguf.architectures.qwen35 import QWEN35

ARCHITECTURES: dict[str, Architecture] = {
    known.name: known for known in (*LLAMA_LIKE, *QWEN, *QWEN35, *GEMMA, *GPT, MAMBA, *OTHERS)
}
"""By their names in `general.architecture`."""

_BY_TYPE = {type_: known for known in ARCHITECTURES.values() for type_ in known.types}


def architecture(name: str) -> Architecture:
    """By its name in `general.architecture`.

    Raises:
        FormatError: it is not known.
    """
    if name not in ARCHITECTURES:
        raise FormatError(
            f"a GGUF file of the architecture {name!r} is not known: one of {', '.join(sorted(ARCHITECTURES))} is "
            "expected; take another --format"
        )
    return ARCHITECTURES[name]


def architecture_of(config: Any) -> Architecture:
    """The architecture of llama.cpp that runs a model.

    Args:
        config: of a transformers model.

    Raises:
        FormatError: none does, or not as the config says.
    """
    config = config.get_text_config()
    known = _BY_TYPE.get(config.model_type)
    if known is None:
        raise FormatError(
            f"a model of the type {config.model_type} has no GGUF file of its own: one of "
            f"{', '.join(sorted(_BY_TYPE))} is expected; take another --format, or name a file that llama.cpp's "
            "converter made of the same model with --like base.gguf"
        )
    missed = [need.words for need in known.needs if not need.met(config)]
    if scaling_of(config) not in known.scalings:
        missed.append(
            f"a rotary embedding of the type {' or '.join(known.scalings)}, not {scaling_of(config)}"
        )
    if missed:
        raise FormatError(
            f"llama.cpp computes {known.name} otherwise than this model's config says: {'; '.join(missed)} is "
            "expected; take another --format"
        )
    return known
