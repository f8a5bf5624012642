"""The golden figures: no method may become worse, or better, unnoticed."""

import json

import pytest

import quality

pytestmark = pytest.mark.slow("measures every method on a trained model")


@pytest.fixture(scope="module")
def measured() -> quality.Figures:
    return quality.measure_fast()


@pytest.mark.parametrize("name", quality.FAST)
def test_figures_are_golden(name: str, measured: quality.Figures) -> None:
    golden = json.loads(quality.FILE.read_text(encoding="utf-8"))["small"]
    assert golden.keys() == quality.FAST.keys()
    near = quality.tolerance(quality.FAST[name])
    found, wanted = measured[name], golden[name]
    assert found["bits_per_weight"] == wanted["bits_per_weight"]
    assert found["kl"] == pytest.approx(wanted["kl"], rel=near)
    assert found["top1"] == pytest.approx(wanted["top1"], abs=near / 4)
    assert found["perplexity_ratio"] == pytest.approx(wanted["perplexity_ratio"], abs=near / 4)


def test_the_page_is_what_the_file_says() -> None:
    golden = json.loads(quality.FILE.read_text(encoding="utf-8"))
    assert quality.PAGE.read_text(encoding="utf-8") == quality.page(golden)


def test_methods_are_in_the_order_in_which_they_should_be(measured: quality.Figures) -> None:
    kl = {name: row["kl"] for name, row in measured.items()}
    assert kl["RTN W4"] < kl["RTN W3"]
    for better in ("GPTQ W3", "AutoRound W3", "FlexRound W3", "LRQ W3", "SpQR W3, 1 % outliers"):
        assert kl[better] < 0.7 * kl["RTN W3"]
    assert kl["AutoRound W4"] < kl["RTN W4"]
