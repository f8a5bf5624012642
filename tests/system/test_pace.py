"""How long work will still take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundel.system.pace import Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(total=st.integers(2, 50), found=st.integers(0, 20), each=st.floats(0.01, 100), share=st.floats(0, 0.9))
def test_at_an_even_pace_what_is_left_is_exact(total: int, found: int, each: float, share: float) -> None:
    """Whatever an earlier process did, and wherever in a step one looks."""
    found = min(found, total - 2)
    clock = Clock()
    pace = Pace(total, clock)
    clock.now = 7.0  # finding what was done takes time, too
    pace.found(found)
    assert pace.left() is None
    while pace.done < total:
        clock.now += each
        pace.advance(1)
        assert pace.left() == pytest.approx((total - pace.done) * each)
        if pace.done < total:
            began = clock.now
            clock.now += share * each
            assert pace.left(share) == pytest.approx((total - pace.done - share) * each, abs=1e-6)
            clock.now = began
    assert pace.share() == 1.0
    assert pace.left() == 0.0
