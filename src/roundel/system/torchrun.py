"""What torchrun tells a process in its environment, before it meets the others (ranks.py)."""

import os


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def number() -> int:
    """The number of this process among all."""
    return int(os.environ.get("RANK", "0"))


def place() -> int:
    """The number of this process among those on its machine: which of several accelerators it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))
