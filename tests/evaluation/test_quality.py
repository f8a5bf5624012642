"""Intervals cover what they promise, and paired ones see what single ones do not."""

import math

import pytest
import torch

from roundel.evaluation.measure import Measured
from roundel.evaluation.quality import resampled, summarize


def test_the_middle_of_many_resamples() -> None:
    """Against plain numpy drawing with replacement, and against the interval of a normal mean."""
    import numpy as np

    values = torch.randn(60, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 + 5
    found = resampled(values)
    draws = np.random.default_rng(7).choice(values.numpy(), (20_000, 60)).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)
    half = 1.96 * float(values.std()) / math.sqrt(60)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    generator = torch.Generator().manual_seed(5)
    held = 0
    for _ in range(300):
        found = resampled(torch.randn(40, generator=generator, dtype=torch.float64))
        held += found.low <= 0 <= found.high
    assert 0.90 < held / 300 < 0.98


def test_the_same_twice_and_nothing_of_the_global_state() -> None:
    values = torch.rand(9, dtype=torch.float64)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert resampled(values) == resampled(values)
    assert torch.equal(before, torch.get_rng_state())


def test_one_window_has_no_interval() -> None:
    found = resampled(torch.tensor([2.0], dtype=torch.float64), math.exp)
    assert (found.value, found.low, found.high) == (math.exp(2), None, None)


def test_a_paired_ratio_is_far_sharper_than_two_perplexities() -> None:
    generator = torch.Generator().manual_seed(2)
    reference = 3 + torch.rand(30, 15, generator=generator, dtype=torch.float64)
    reference += torch.randn(30, 1, generator=generator, dtype=torch.float64)  # hard windows and easy ones
    worse = reference + 0.02 + 0.001 * torch.randn(30, 15, generator=generator, dtype=torch.float64)
    kl = torch.rand(30, 16, generator=generator, dtype=torch.float64)
    same = torch.ones(30, 16, dtype=torch.float64)
    found = summarize("text", "words", Measured(worse, reference, kl, same))
    assert found.perplexity.low < found.reference_perplexity.value < found.perplexity.high
    assert 1.019 < found.perplexity_ratio.low < math.exp(0.02) < found.perplexity_ratio.high < 1.022
    assert found.tokens == 30 * 16
    assert found.kl.median == pytest.approx(float(kl.median()), abs=0.01)
    assert found.kl.p99 == pytest.approx(float(kl.flatten().quantile(0.99)), abs=0.01)
    assert found.kl.max == float(kl.max())
    assert found.top1 == resampled(torch.ones(30, dtype=torch.float64))
