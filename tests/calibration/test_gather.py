from pathlib import Path

import pytest
import torch

from roundel.calibration.gather import gather_calibration
from roundel.calibration.options import CalibrationOptions
from roundel.errors import CalibrationError
from roundel.system.progress import Progress

OPTIONS = CalibrationOptions(nsamples=3, seqlen=32)


class Listener(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_without_data_the_model_writes_its_own_and_says_so(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    listener = Listener()
    before = torch.random.get_rng_state()
    first = gather_calibration(None, model, tokenizer, OPTIONS, listener)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "--calibration FILE" in listener.said[0]
    assert first.tokens.shape == (3, 32)
    again = gather_calibration("self", model, tokenizer, OPTIONS, Listener())
    assert again.fingerprint == first.fingerprint
    other = OPTIONS.model_copy(update={"seed": 1})
    assert gather_calibration("self", model, tokenizer, other, Listener()).fingerprint != first.fingerprint


@torch.no_grad()
def test_text_from_the_model_is_likely_to_the_model(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    written = gather_calibration("self", model, tokenizer, OPTIONS, Progress()).tokens
    random = torch.randint(0, 1024, written.shape, generator=torch.Generator().manual_seed(0))
    loss = [float(model(input_ids=rows, labels=rows).loss) for rows in (written, random)]
    assert loss[0] < loss[1] - 1


def test_the_callers_data_win_over_the_recipes(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    options = OPTIONS.model_copy(update={"calibration": "nowhere.txt"})
    ids = torch.arange(3 * 32).view(3, 32)
    found = gather_calibration(ids, model, tokenizer, options, Progress())
    assert torch.equal(found.tokens, ids)
    with pytest.raises(CalibrationError, match=r"no file nowhere\.txt"):
        gather_calibration(None, model, tokenizer, options, Progress())
    found = gather_calibration(["some words " * 99] * 3, model, tokenizer, options, Progress())
    assert found.tokens.shape == (3, 32)


def test_tensors_that_are_no_ids(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    with pytest.raises(CalibrationError, match="integer ids"):
        gather_calibration(torch.zeros(3, 32), model, tokenizer, OPTIONS, Progress())


@pytest.mark.parametrize("source", ["self", "pydoc"])
def test_rows_longer_than_the_models_positions(source: str, llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    with pytest.raises(CalibrationError, match="512 positions"):
        gather_calibration(source, model, tokenizer, CalibrationOptions(seqlen=1024), Progress())
