from pathlib import Path

import pytest
import torch

from roundel.calibration.forms import Chat
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.tokens import check_ids, pack_documents
from roundel.errors import CalibrationError


class Letters:
    """One token per character."""

    eos_token_id = 0
    chat_template = None

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def options(**values: object) -> CalibrationOptions:
    return CalibrationOptions(**{"nsamples": 2, "seqlen": 8, **values})


def test_short_texts_are_packed_not_dropped() -> None:
    rows = pack_documents(["abc", "de", "fghij", "k", "lm"], Letters(), options())
    assert rows.shape == (2, 8)
    text = "".join("|" if t == 0 else chr(t) for t in rows.flatten().tolist())
    # Every document but the one at the cut is there, each closed by the end-of-text token.
    whole = [piece for piece in text.split("|")[:-1] if piece]
    assert set(whole) <= {"abc", "de", "fghij", "k", "lm"}
    assert len(whole) >= 3


def test_the_seed_decides_the_order() -> None:
    documents = [letter * 3 for letter in "abcdefghijklmnop"]
    first = pack_documents(documents, Letters(), options(seed=1))
    assert torch.equal(first, pack_documents(documents, Letters(), options(seed=1)))
    assert not torch.equal(first, pack_documents(documents, Letters(), options(seed=2)))


def test_documents_in_their_own_order() -> None:
    rows = pack_documents(["abc", "de", "fghij", "klmno"], Letters(), options(shuffle=False))
    assert "".join("|" if t == 0 else chr(t) for t in rows.flatten().tolist()) == "abc|de|fghij|klm"


def test_ready_rows_of_ids_are_taken_as_they_are() -> None:
    rows = [[r * 8 + c for c in range(8)] for r in range(3)]
    assert pack_documents(rows, None, options()).tolist() == rows[:2]


def test_other_lengths_of_ids_are_packed() -> None:
    assert pack_documents([[1] * 20], None, options()).tolist() == [[1] * 8] * 2


@pytest.mark.parametrize(
    ("documents", "advice"),
    [(["a" * 9], "set nsamples to 1 or less"), (["abc"], "give more text, or set seqlen below 4")],
)
def test_too_little_text(documents: list[str], advice: str) -> None:
    with pytest.raises(CalibrationError, match=advice):
        pack_documents(documents, Letters(), options())


def test_text_without_a_tokenizer() -> None:
    with pytest.raises(CalibrationError, match="without a tokenizer"):
        pack_documents(["abc"], None, options())


def test_chat_template(llama: Path, load_model) -> None:
    _, tokenizer = load_model(llama)
    with pytest.raises(CalibrationError, match="tokenizer has none"):
        pack_documents(["a text"], tokenizer, options(chat_template=True))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    rows = pack_documents(["a long enough text"] * 9, tokenizer, options(chat_template=True, seqlen=16))
    assert "<user>a long enough text<|end|><user>" in tokenizer.decode(rows.flatten())
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    rows = pack_documents([Chat(chat)] * 20, tokenizer, options(seqlen=16))
    assert "<system>be brief<user>why?" in tokenizer.decode(rows.flatten())


def test_ids_beyond_the_vocabulary() -> None:
    assert check_ids(torch.tensor([[0, 9]]), 10) is not None
    with pytest.raises(CalibrationError, match="token id 10 .* 0 to 9"):
        check_ids(torch.tensor([[0, 10]]), 10)
    with pytest.raises(CalibrationError, match="token id -1"):
        check_ids(torch.tensor([[0, -1]]), 10)
