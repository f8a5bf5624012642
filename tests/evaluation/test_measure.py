import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from roundel.errors import CalibrationError, ModelError, NonFiniteError
from roundel.evaluation.measure import Measured, measure
from roundel.evaluation.predict import Whole
from roundel.evaluation.quality import TextQuality, summarize
from roundel.evaluation.reference import Original
from roundel.evaluation.windows import evaluation_windows


@pytest.fixture
def pair(llama: Path, load_model):
    model, tokenizer = load_model(llama)
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.model.layers[0].mlp.down_proj.weight *= 0.7
    return damaged, model, tokenizer


def compared(model: Any, windows: torch.Tensor, reference: Any | None = None, **how: Any) -> Measured:
    """With an original in memory."""
    asked = None if reference is None else Original(Whole(reference), None, None, {}).distributions(windows)
    return measure(Whole(model), windows, asked, **how)


def quality(*arguments: Any) -> TextQuality:
    return summarize("text", "as it is", compared(*arguments))


def test_windows_are_cut_from_one_tokenizer_call(llama: Path, load_model, held_out: Path) -> None:
    _, tokenizer = load_model(llama)
    found = evaluation_windows(str(held_out), tokenizer, 100)
    ids = tokenizer(held_out.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    assert found.windows.flatten().tolist() == ids[: len(ids) // 100 * 100]
    assert f"{len(ids) // 100} windows of 100 tokens" in found.convention
    assert evaluation_windows(str(held_out), tokenizer, 100, limit=2).windows.shape == (2, 100)


def test_too_short_or_missing_text(llama: Path, load_model, tmp_path: Path) -> None:
    _, tokenizer = load_model(llama)
    (tmp_path / "short.txt").write_text("few words")
    with pytest.raises(CalibrationError, match="one window of 100 is expected"):
        evaluation_windows(str(tmp_path / "short.txt"), tokenizer, 100)
    with pytest.raises(CalibrationError, match="no text nowhere"):
        evaluation_windows("nowhere", tokenizer, 100)


@torch.no_grad()
def test_figures_equal_a_few_lines_of_plain_torch(pair, held_out: Path) -> None:
    damaged, model, tokenizer = pair
    windows = evaluation_windows(str(held_out), tokenizer, 64, limit=5).windows
    found = quality(damaged, windows, model)
    losses, kl, same = [], [], []
    for row in windows:
        ours, theirs = (
            damaged(input_ids=row[None]).logits[0].double(),
            model(input_ids=row[None]).logits[0].double(),
        )
        log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
        losses.append(-log_q[range(63), row[1:]].mean())
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        same.append((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    assert found.perplexity.value == pytest.approx(math.exp(sum(losses) / 5), rel=1e-5)
    assert found.kl.mean.value == pytest.approx(float(sum(kl) / 5), rel=1e-4)
    assert found.top1.value == pytest.approx(float(sum(same) / 5), abs=1e-9)
    assert found.tokens == 320


def test_a_model_does_not_differ_from_itself(pair, held_out: Path) -> None:
    _, model, tokenizer = pair
    windows = evaluation_windows(str(held_out), tokenizer, 64, limit=3).windows
    found = quality(model, windows, model)
    assert found.kl.mean.value == pytest.approx(0, abs=1e-7)
    assert found.top1.value == 1
    assert found.perplexity == found.reference_perplexity
    assert quality(model, windows).kl is None


def test_logits_that_are_not_finite(pair) -> None:
    damaged, _, _ = pair
    with torch.no_grad():
        damaged.lm_head.weight[3, 3] = float("inf")
    with pytest.raises(NonFiniteError, match="window 0"):
        compared(damaged, torch.zeros(1, 16, dtype=torch.int64))


def test_models_of_different_vocabularies_are_not_compared(pair) -> None:
    damaged, model, _ = pair
    model.resize_token_embeddings(1030)
    with pytest.raises(ModelError, match="1024.*1030"):
        compared(damaged, torch.zeros(1, 16, dtype=torch.int64), model)
