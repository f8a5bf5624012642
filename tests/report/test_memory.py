import subprocess
import sys

import pytest
import torch

from roundel.report.memory import peak_memory


def test_the_peak_is_at_least_what_was_held() -> None:
    held = torch.ones(50_000_000)
    assert peak_memory() > held.numel() * 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts with a peak of its own")
def test_the_peak_of_the_parent_is_not_ours() -> None:
    held = torch.ones(400_000_000)
    code = "from roundel.report.memory import peak_memory; print(peak_memory())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < held.numel() * 4
