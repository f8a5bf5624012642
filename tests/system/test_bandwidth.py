"""The memory's bandwidth: the fastest pass over a buffer that no cache holds."""

import pytest

from roundel.system import bandwidth
from roundel.system.bandwidth import ReadBandwidth, buffer_bytes


def test_the_fastest_pass_of_any_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    read = ReadBandwidth(1 << 20)
    seconds = [4.0, 3.0, 5.0, 0.5, 2.0, 9.0, 8.0, 7.0, 6.0]
    clock = iter([now for length in seconds for now in (100.0, 100.0 + length)])
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(clock))
    assert read.measure(passes=3) == (1 << 20) / 0.5
    assert next(clock, None) is None  # each way as often


def test_every_way_reads_the_whole_buffer() -> None:
    read = ReadBandwidth(1 << 20)
    assert read.size == 1 << 20
    found = [way() for way in read._ways.values()]
    assert found[0].item() == read.size / 4  # of ones
    assert found[1].item() == 0x3F800000
    assert found[2].sum().item() == read.size / 4


def test_the_buffer_is_much_larger_than_caches_and_leaves_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "free_memory", lambda: 1 << 40)
    for cache in (0, 1 << 20, 1 << 30):
        monkeypatch.setattr(bandwidth, "largest_cache", lambda cache=cache: cache)
        assert buffer_bytes() >= max(8 * cache, 256 << 20)
    monkeypatch.setattr(bandwidth, "free_memory", lambda: 100 << 20)
    assert buffer_bytes() == 25 << 20


def test_it_is_a_rate_of_this_machine() -> None:
    read = ReadBandwidth(8 << 20)
    assert 1e7 < read.measure() < 1e13
