"""The architectures that GGUF files of Roundel can have: which rules their tensors follow.

Facts of llama.cpp (its converter and `src/llama-arch.cpp`), as data.
"""

from dataclasses import dataclass

from roundel.formats.gguf.rules import EXPERTS, Rule, pairs, plus_one


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    Attributes:
        name: in `general.architecture`.
        rules: of its tensors, before those that hold for all.
    """

    name: str
    rules: tuple[Rule, ...] = ()


_IN_PAIRS = (
    Rule(r"\.q_proj\.(weight|bias)$", pairs("num_attention_heads")),
    Rule(r"\.k_proj\.(weight|bias)$", pairs("num_key_value_heads")),
)
_NORMS_PLUS_ONE = (Rule(r"norm\.weight$", plus_one),)

_ALL = (
    Architecture("llama", _IN_PAIRS),
    Architecture("qwen2"),
    Architecture("qwen2moe"),
    Architecture("qwen3"),
    Architecture("qwen3moe"),
    Architecture("gemma", _NORMS_PLUS_ONE),
    Architecture("gemma2", _NORMS_PLUS_ONE),
    Architecture("gemma3", _NORMS_PLUS_ONE),
    Architecture("gpt2"),
)
ARCHITECTURES: dict[str, Architecture] = {known.name: known for known in _ALL}
"""By their names in `general.architecture`."""

FOR_ALL = EXPERTS
"""Rules of every architecture."""
