"""The original's predictions on disk: exact with all logits, a lower bound with some."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import roundel
from roundel.errors import OutputError, RecipeError
from roundel.evaluation.distribution import Full, Top

MEASURED = {"window": 64, "limit": 4}


@pytest.fixture(scope="module")
def rounded(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    roundel.quantize(llama, roundel.Recipe(method="rtn", bits=3, group_size=32), output=out)
    return out


def test_kept_predictions_give_the_same_figures(
    rounded: Path, llama: Path, held_out: Path, tmp_path: Path
) -> None:
    direct = roundel.evaluate(rounded, reference=llama, text=str(held_out), **MEASURED)
    for _ in range(2):
        kept = roundel.evaluate(rounded, reference=llama, text=str(held_out), cache=tmp_path, **MEASURED)
        assert kept == direct
        assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_the_second_variant_does_not_run_the_original(
    rounded: Path, llama: Path, held_out: Path, tmp_path: Path, monkeypatch
) -> None:
    from roundel.evaluation.predict import Whole

    asked: list[int] = []
    logits = Whole.logits

    def counted(self: Whole, windows: torch.Tensor):
        for found in logits(self, windows):
            asked.append(1)
            yield found

    monkeypatch.setattr(Whole, "logits", counted)
    how = {"reference": llama, "text": str(held_out), "cache": tmp_path, "window": 64}
    roundel.evaluate(rounded, **how, limit=4)
    assert len(asked) == 8
    roundel.evaluate(rounded, **how, limit=4)
    assert len(asked) == 12
    # Two more windows: only they are new.
    roundel.evaluate(rounded, **how, limit=6)
    assert len(asked) == 12 + 6 + 2


def test_other_originals_and_other_forms_are_kept_apart(
    rounded: Path, llama: Path, held_out: Path, tmp_path: Path
) -> None:
    how = {"text": str(held_out), "cache": tmp_path, **MEASURED}
    against_llama = roundel.evaluate(rounded, reference=llama, **how)
    against_itself = roundel.evaluate(rounded, reference=rounded, **how)
    some = roundel.evaluate(rounded, reference=llama, top_k=16, **how)
    assert len(list(tmp_path.glob("*.safetensors"))) == 12
    assert against_itself.texts[0].kl.mean.value == pytest.approx(0, abs=1e-9)
    assert 0 < some.texts[0].kl.mean.value < against_llama.texts[0].kl.mean.value
    assert some.texts[0].top1 == against_llama.texts[0].top1
    assert some.texts[0].reference_perplexity == against_llama.texts[0].reference_perplexity


def test_the_likeliest_tokens_and_the_rest() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(50, 100, generator=generator) * 3 for _ in range(2))
    window = torch.randint(100, (50,), generator=generator)
    exact = Full(p).compare(q, window)
    before = torch.zeros(50)
    for k in (1, 5, 30, 99):
        some = Top.of(p, window, k).compare(q, window)
        # By hand, in double: k tokens and one for all others.
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        places = p.argsort(descending=True)[:, :k]
        likely_p, likely_q = log_p.gather(-1, places).exp(), log_q.gather(-1, places).exp()
        rest_p, rest_q = 1 - likely_p.sum(-1), 1 - likely_q.sum(-1)
        wanted = (likely_p * (likely_p / likely_q).log()).sum(-1) + rest_p * (rest_p / rest_q).log()
        torch.testing.assert_close(some.kl, wanted.float(), rtol=1e-3, atol=1e-4)
        assert (some.kl >= before - 1e-4).all()
        assert (some.kl <= exact.kl + 1e-4).all()
        assert torch.equal(some.same, exact.same)
        assert torch.equal(some.loss, exact.loss)
        before = some.kl
    torch.testing.assert_close(before, exact.kl, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [30, 513, 1024])
def test_losses_are_those_of_cross_entropy(length: int) -> None:
    """However the rows are cut."""
    generator = torch.Generator().manual_seed(length)
    p, q = (torch.randn(length, 40, generator=generator) * 3 for _ in range(2))
    window = torch.randint(40, (length,), generator=generator)
    wanted, found = (F.cross_entropy(of[:-1], window[1:], reduction="none") for of in (p, q))
    for reference in (Full(p), Top.of(p, window, 7)):
        difference = reference.compare(q, window)
        assert torch.equal(difference.loss, wanted)
        assert torch.equal(difference.found_loss, found)


def test_more_tokens_than_there_are_is_all_of_them(
    rounded: Path, llama: Path, held_out: Path, tmp_path: Path
) -> None:
    how = {"reference": llama, "text": str(held_out), **MEASURED}
    assert roundel.evaluate(rounded, top_k=5000, **how) == roundel.evaluate(rounded, **how)


def test_damaged_files_and_senseless_numbers(
    rounded: Path, llama: Path, held_out: Path, tmp_path: Path
) -> None:
    how = {"reference": llama, "text": str(held_out), "cache": tmp_path, **MEASURED}
    roundel.evaluate(rounded, **how)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"12")
    with pytest.raises(OutputError, match="take it away, and it is computed anew"):
        roundel.evaluate(rounded, **how)
    with pytest.raises(RecipeError, match="top_k=0: 1 token or more"):
        roundel.evaluate(rounded, **how, top_k=0)
