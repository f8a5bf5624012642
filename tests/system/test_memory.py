import subprocess
import sys
from pathlib import Path

import pytest
import torch

from roundel.system import memory
from roundel.system.memory import begin_part, part_peak, peak_memory


def test_the_peak_is_at_least_what_was_held() -> None:
    held = torch.ones(50_000_000)
    assert peak_memory() > held.numel() * 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts with a peak of its own")
def test_the_peak_of_the_parent_is_not_ours() -> None:
    held = torch.ones(400_000_000)
    code = "from roundel.system.memory import peak_memory; print(peak_memory())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < held.numel() * 4


HELD = 60_000_000  # numbers, of four bytes

# In a process of its own: what other tests have left in this one's allocator decides what it returns to the system.
_PARTS = f"""
import torch
from roundel.system.memory import begin_part, part_peak, peak_memory

begin_part()
held = torch.ones({HELD})
large = part_peak()
del held
begin_part()
small = part_peak()
again = torch.ones({HELD} // 2)
print(large, small, part_peak(), peak_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the mark cannot be set back")
def test_a_part_has_a_peak_of_its_own() -> None:
    found = subprocess.run([sys.executable, "-c", _PARTS], capture_output=True, text=True, check=True)
    large, small, half, highest = map(int, found.stdout.split())
    assert small < large - 3 * HELD
    assert small + HELD < half < large
    # The process's own peak is the highest of all.
    assert highest >= large


def test_where_the_mark_cannot_be_set_back_it_is_the_peak_so_far(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = torch.ones(HELD)
    begin_part()
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "nowhere" / "clear_refs")
    before = part_peak()
    assert before > 4 * held.numel()
    del held
    begin_part()
    # The kernel counts pages of each thread roughly.
    assert part_peak() > 0.99 * before
