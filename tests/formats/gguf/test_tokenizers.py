"""How a tokenizer is told to llama.cpp, and which ones cannot be."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from formats.gguf.spm import gemma_tokenizer, llama_tokenizer, model_file, pieces, scores
from roundel.errors import FormatError
from roundel.formats.gguf.tokenizer.pre_tokenizers import pre_tokenizer_name
from roundel.formats.gguf.tokenizer.sentencepiece import BYTE, CONTROL, UNKNOWN, pieces_of, read_pieces
from roundel.formats.gguf.tokenizer.vocabulary import vocabulary_of
from zoo.training import train_tokenizer

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# As in the tokenizer.json of the models that the names are of.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(expression: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(expression), "isolated")


DIGITS = pre_tokenizers.Digits(individual_digits=True)
THREE = [pre_tokenizers.Punctuation("contiguous"), WORDS, split("[0-9][0-9][0-9]")]
KNOWN = {
    "gpt-2": ([WORDS], {}, False),
    "starcoder": ([DIGITS, WORDS], {}, True),
    "smollm": ([DIGITS, WORDS], {}, False),
    "llama-bpe": ([split(LLAMA3), BYTES], {"ignore_merges": True}, True),
    "qwen2": ([split(QWEN2), BYTES], {}, False),
    "stablelm2": ([split(QWEN2), BYTES], {}, True),
    "tekken": ([split(TEKKEN), BYTES], {"ignore_merges": True}, False),
    "falcon": (THREE, {}, False),
}


def about(steps, settings=None, normalizer=None, merges=()) -> dict:
    """A tokenizer.json; its one token of two letters is no merge's, unless `merges` give it."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")] if merges else []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    found = json.loads(tokenizer.to_str())
    found["model"] |= settings or {}
    return found


@pytest.mark.parametrize("name", KNOWN)
def test_the_name_is_found_by_what_the_tokenizer_does(name):
    steps, settings, tidy = KNOWN[name]
    assert pre_tokenizer_name(about(steps, settings), tidy=tidy) == name
    assert pre_tokenizer_name(about(steps, settings, normalizers.NFC()), tidy=tidy) == name


def test_whole_words_first_is_another_name_where_it_matters():
    steps = [split(LLAMA3), BYTES]
    assert pre_tokenizer_name(about(steps), tidy=True) == "dbrx"
    with pytest.raises(FormatError, match="found .*, whole words first; .*--like base.gguf"):
        pre_tokenizer_name(about([WORDS], {"ignore_merges": True}), tidy=False)
    assert pre_tokenizer_name(about([WORDS], {"ignore_merges": True}, merges=True), tidy=False) == "gpt-2"


@pytest.mark.parametrize(
    ("steps", "normalizer", "found"),
    [
        ([split(r"\w+|\W+"), BYTES], None, r"'\\\\w\+\|\\\\W\+'"),
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], None, "'add_prefix_space': True"),
        ([pre_tokenizers.Whitespace(), BYTES], None, "'type': 'Whitespace'"),
        ([WORDS], normalizers.Lowercase(), "a normalizer Lowercase"),
    ],
    ids=["expression", "blank", "kind", "normalizer"],
)
def test_what_has_no_name_is_refused(steps, normalizer, found):
    with pytest.raises(FormatError, match=f"no known name for: found .*{found}.*--like base.gguf"):
        pre_tokenizer_name(about(steps, normalizer=normalizer), tidy=False)


def test_pieces_are_read_from_the_file_of_sentencepiece():
    found = read_pieces(model_file(pieces(), blank_first=False))
    assert found.texts == pieces()
    assert found.scores == scores(pieces())
    assert found.kinds[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert not found.blank_first


def test_merges_give_the_order_that_scores_have():
    found = pieces_of(json.loads(llama_tokenizer().backend_tokenizer.to_str()))
    by_file = dict(zip(pieces(), scores(pieces()), strict=True))
    merged = [text for text in pieces() if len(text) > 1 and text[0] != "<"]
    mine = dict(zip(found.texts, found.scores, strict=True))
    assert sorted(merged, key=lambda text: -mine[text]) == sorted(merged, key=lambda text: -by_file[text])
    assert found.blank_first


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (model_file(pieces(), kind=1), "not of sentencepiece's kind BPE"),
        (model_file(pieces())[:-9], "cannot be read"),
        (b"\x0f\x0f", "cannot be read"),
    ],
    ids=["unigram", "cut", "other"],
)
def test_a_bad_file_of_sentencepiece_is_refused(data, words):
    with pytest.raises(FormatError, match=words):
        read_pieces(data)


def test_fewer_merges_are_taken_if_that_does_not_show():
    tokenizer = json.loads(llama_tokenizer().backend_tokenizer.to_str())
    tokenizer["model"]["merges"].remove(["▁th", "e"])  # the later one of two ways
    assert pieces_of(tokenizer).texts == pieces()


def test_fewer_merges_are_refused_if_that_shows():
    tokenizer = json.loads(llama_tokenizer().backend_tokenizer.to_str())
    tokenizer["model"]["merges"].remove(["▁t", "he"])
    with pytest.raises(
        FormatError, match="the tokenizer cuts '.*' into .* tokens, and llama.cpp would cut it into other"
    ):
        pieces_of(tokenizer)


def test_added_tokens_are_control_or_text(tmp_path):
    tokenizer = gemma_tokenizer()
    tokenizer.add_tokens(["▁▁▁", "<|tool|>"])
    found = vocabulary_of(tokenizer, None, 1024)
    kinds = dict(zip(found.tokens, found.kinds, strict=True))
    assert (kinds["<start_of_turn>"], kinds["<|tool|>"], kinds["   "]) == (3, 3, 4)
    assert found.tokens[-1] == "[PAD1023]"
    assert found.kinds[-1] == 5


def test_a_token_without_a_row_is_refused():
    with pytest.raises(FormatError, match="has the number 1000, and the model's embeddings have 1000 rows"):
        vocabulary_of(train_tokenizer(), None, 1000)


def test_unigram_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)], 0)))
    with pytest.raises(FormatError, match=r"PreTrainedTokenizerFast|TokenizersBackend \(Unigram\) is none"):
        vocabulary_of(tokenizer, None, 10)
