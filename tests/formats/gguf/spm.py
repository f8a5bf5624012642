"""A tokenizer like those of sentencepiece, and the file that sentencepiece would have of it."""

import struct
from functools import cache

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

from zoo.training import training_text

_SPECIAL = ("<unk>", "<s>", "</s>")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@cache
def pieces(size: int = 1000) -> list[str]:
    """Special tokens, bytes, then what was merged, in the order of merging."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    room = size - len(_SPECIAL) - len(_BYTES)
    trainer = trainers.BpeTrainer(vocab_size=room, show_progress=False)
    tokenizer.train_from_iterator(training_text(), trainer)
    vocabulary = tokenizer.get_vocab()
    learned = sorted(vocabulary, key=lambda text: vocabulary[text])
    # Letters come last, as in sentencepiece's files.
    return [*_SPECIAL, *_BYTES, *sorted(learned, key=lambda text: len(text) == 1)]


def scores(texts: list[str]) -> list[float]:
    """As sentencepiece has them: special tokens and bytes none, the others by their order."""
    first = len(_SPECIAL) + len(_BYTES)
    return [0.0] * first + [-float(number) for number in range(len(texts) - first)]


def llama_tokenizer() -> LlamaTokenizer:
    """With a blank before each text, and a BOS."""
    vocabulary = {text: number for number, text in enumerate(pieces())}
    return LlamaTokenizer(vocab=vocabulary, merges=_merges(vocabulary), add_bos_token=True)


def gemma_tokenizer() -> GemmaTokenizer:
    """Without a blank before, and with a template for chats."""
    renamed = {"<s>": "<bos>", "</s>": "<eos>"}
    texts = [renamed.get(text, text) for text in pieces()]
    vocabulary = {text: number for number, text in enumerate([*texts, "<pad>", "<mask>"])}
    found = GemmaTokenizer(vocab=vocabulary, merges=_merges(vocabulary), add_bos_token=True)
    found.add_tokens(["<start_of_turn>"], special_tokens=True)
    found.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['content'] }}{% endfor %}"
    )
    return found


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    special = {*_SPECIAL, *_BYTES, "<bos>", "<eos>", "<pad>", "<mask>"}
    return generate_merges(vocabulary, dict(zip(vocabulary, scores(list(vocabulary)), strict=True)), special)


def model_file(texts: list[str], kind: int = 2, *, blank_first: bool = True) -> bytes:
    """A `tokenizer.model`, by hand.

    Args:
        texts: of the pieces.
        kind: how it was trained; 2: BPE, 1: unigram.
        blank_first: a blank is put before a text.
    """
    message = b""
    for text, score in zip(texts, scores(texts), strict=True):
        number = 2 if text == "<unk>" else 3 if text in _SPECIAL else 6 if text in _BYTES else 1
        piece = _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, number)
        message += _bytes(1, piece)
    return message + _bytes(2, _number(3, kind) + _number(35, 1)) + _bytes(3, _number(3, int(blank_first)))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])
