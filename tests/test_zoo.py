"""The zoo itself: its models have learned, and those with code of their own bring it along."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from zoo import EVERY, MIXTURES, OWN_CODE, manual_text, zoo_model
from zoo.training import train_tokenizer, training_ids


def open_model(folder: Path, own_code: bool) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own_code).eval()


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    """Eight windows of held-out text, spread over all of it."""
    ids = torch.tensor(train_tokenizer()(manual_text(), verbose=False)["input_ids"])
    starts = range(0, len(ids) - 128, len(ids) // 8)
    return torch.stack([ids[start : start + 128] for start in starts])


@pytest.fixture(scope="module")
def unigram_loss(windows: torch.Tensor) -> float:
    """What knowing each token's frequency alone is worth: no random weights come below it."""
    counts = torch.bincount(training_ids(), minlength=1024).double() + 1
    return -(counts / counts.sum()).log()[windows[:, 1:]].mean().item()


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_a_model_has_learned_more_than_frequencies(
    name: str, windows: torch.Tensor, unigram_loss: float
) -> None:
    model = open_model(zoo_model(name), name in OWN_CODE)
    logits = model(input_ids=windows, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()).item()
    assert loss < unigram_loss - 0.5


@torch.no_grad()
@pytest.mark.parametrize("name", OWN_CODE)
def test_own_code_is_saved_along(name: str, windows: torch.Tensor, tmp_path: Path) -> None:
    model = open_model(zoo_model(name), own_code=True)
    model.save_pretrained(tmp_path / "again")
    again = open_model(tmp_path / "again", own_code=True)
    assert (tmp_path / "again" / f"modeling_{name}.py").is_file()
    assert torch.equal(again(input_ids=windows).logits, model(input_ids=windows).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", OWN_CODE)
def test_own_code_generates_the_same_with_a_cache(name: str, windows: torch.Tensor) -> None:
    model = open_model(zoo_model(name), own_code=True)
    prompt = {"input_ids": windows[:2, :40], "attention_mask": torch.ones(2, 40, dtype=torch.long)}
    cached, whole = (
        model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=u) for u in (True, False)
    )
    assert torch.equal(cached, whole)


def test_the_mixtures_are_those_with_experts() -> None:
    def has_experts(name: str) -> bool:
        model = open_model(zoo_model(name), name in OWN_CODE)
        return any(part.endswith(".experts") for part, _ in model.named_modules())

    assert tuple(name for name in EVERY if has_experts(name)) == MIXTURES
