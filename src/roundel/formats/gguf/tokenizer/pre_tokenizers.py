"""By which name llama.cpp knows how a tokenizer cuts a text into words, before their bytes are merged.

The expressions that cut are no part of a GGUF file: it has a name, and llama.cpp has expressions for each name. A wrong
name gives other tokens and a model that is worse without a word. So the name is looked up by what the tokenizer does,
in its own words (`tokenizer.json`), and what is not in the table is refused.
"""

from dataclasses import dataclass
from typing import Any

from roundel.errors import FormatError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT, _NUMBER, _PUNCTUATION = r"\p{N}", r"\p{N}+", "punctuation"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",  # noqa: RUF001
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True)
class _Known:
    """A name of llama.cpp's.

    Attributes:
        name: in `tokenizer.ggml.pre`.
        steps: by which the words are cut, one after the other.
        whole_words: a word that is a token is taken as it is, whatever the merges give (`ignore_merges`).
        tidy: a blank before punctuation is left out when tokens become text; None: it is not looked at.
    """

    name: str
    steps: tuple[str, ...]
    whole_words: bool = False
    tidy: bool | None = None


_KNOWN = (
    _Known("gpt-2", (_GPT2,)),
    _Known("starcoder", (_DIGIT, _GPT2), tidy=True),
    _Known("smollm", (_DIGIT, _GPT2), tidy=False),
    _Known("llama-bpe", (rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}",), whole_words=True),
    _Known("dbrx", (rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}",)),
    _Known("stablelm2", (rf"{_WORD}|\p{{N}}|{_REST}",), tidy=True),
    _Known("qwen2", (rf"{_WORD}|\p{{N}}|{_REST}",), tidy=False),
    _Known(
        "qwen35",
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    _Known("tekken", (rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_REST}",), whole_words=True),
    _Known("gpt-4o", (rf"{_CASED % (_ENDINGS, _ENDINGS)}|\p{{N}}{{1,3}}|{_CASED_REST}",)),
    _Known("default", (_PUNCTUATION, _GPT2, _NUMBER, "[0-9][0-9][0-9]")),
    _Known("falcon", (_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]")),
    _Known("bloom", (_BLOOM,)),
    _Known("viking", (_BLOOM, _DIGIT)),
    _Known("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    _Known("deepseek-v3", _DEEPSEEK3),
)
# Normalizers that llama.cpp does without: composed letters are what texts have anyway.
_HARMLESS = ("NFC",)


def pre_tokenizer_name(about: dict[str, Any], *, tidy: bool) -> str:
    """The name for `tokenizer.ggml.pre` of a byte-level BPE tokenizer.

    Args:
        about: a `tokenizer.json`.
        tidy: blanks before punctuation are left out when its tokens become text.

    Raises:
        FormatError: llama.cpp has no name for it, or Roundel does not know it.
    """
    normalizers = [part["type"] for part in _flat(about.get("normalizer"), "normalizers")]
    odd = [name for name in normalizers if name not in _HARMLESS]
    if odd:
        raise _unknown(f"a normalizer {' and '.join(odd)}, which llama.cpp does not have for byte-level BPE")
    steps = steps_of(about)
    same = [known for known in _KNOWN if known.steps == steps and known.tidy in (None, tidy)]
    whole = bool(about["model"].get("ignore_merges"))
    found = [known.name for known in same if known.whole_words == whole]
    if not found and merges_give_every_token(about):
        found = [known.name for known in same]
    if not found:
        words = ", ".join(repr(step) for step in steps) or "nothing"
        raise _unknown(f"{words}{', whole words first' if whole else ''}")
    return found[0]


def steps_of(about: dict[str, Any]) -> tuple[str, ...]:
    """The expressions by which a tokenizer cuts a text into words, one after the other.

    Args:
        about: a `tokenizer.json`.
    """
    steps = [_step(part) for part in _flat(about.get("pre_tokenizer"), "pretokenizers")]
    return tuple(step for step in steps if step)


def merges_give_every_token(about: dict[str, Any]) -> bool:
    """Whether each token of a vocabulary is one byte, one of those added to it, or what a merge gives.

    Then it makes no difference whether whole words are looked up before the merges.
    """
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in about["model"]["merges"]]
    given = {left + right for left, right in pairs} | {token["content"] for token in about["added_tokens"]}
    return all(len(token) == 1 or token in given for token in about["model"]["vocab"])


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return (
        [piece for inner in part[key] for piece in _flat(inner, key)]
        if part["type"] == "Sequence"
        else [part]
    )


def _step(part: dict[str, Any]) -> str:
    kind = part["type"]
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return _GPT2 if part.get("use_regex", True) else ""
    # Both take each match as a word; of an expression that matches everything nothing else is left.
    every_match = (part.get("behavior"), part.get("invert")) in (("Isolated", False), ("Removed", True))
    if kind == "Split" and "Regex" in part["pattern"] and every_match:
        return str(part["pattern"]["Regex"])
    if kind == "Digits":
        return _DIGIT if part["individual_digits"] else _NUMBER
    if kind == "Punctuation" and part.get("behavior") == "Contiguous":
        return _PUNCTUATION
    return str(part)


def _unknown(what: str) -> FormatError:
    return FormatError(
        f"the tokenizer cuts texts in a way that llama.cpp's files have no known name for: found {what}; with a file "
        "that llama.cpp's converter made of the same model, --like base.gguf takes names and metadata from there"
    )
