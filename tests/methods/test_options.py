import pytest

from roundel.methods.options import TuningOptions


@pytest.mark.parametrize(
    ("iters", "bits", "lr"), [(200, 4, 1 / 200), (1000, 3, 2 / 1000), (1000, 4, 1 / 1000), (999, 2, 1 / 999)]
)
def test_step_size_of_offsets(iters: int, bits: int, lr: float) -> None:
    assert TuningOptions(iters=iters).resolved_lr(bits) == pytest.approx(lr)


def test_step_size_of_ranges_depends_on_the_start() -> None:
    assert TuningOptions(iters=100).resolved_minmax_lr(searched=True) == pytest.approx(0.002)
    assert TuningOptions(iters=100).resolved_minmax_lr(searched=False) == pytest.approx(0.01)


def test_what_is_set_wins() -> None:
    options = TuningOptions(iters=1000, lr=0.03, minmax_lr=0.04)
    assert options.resolved_lr(2) == 0.03
    assert options.resolved_minmax_lr(searched=True) == 0.04
