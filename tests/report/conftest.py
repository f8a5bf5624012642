from collections.abc import Iterator

import pytest
from browser import CHROMIUM, Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; it opens each page in a tab of its own."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: Debian's package chromium brings it")
    with Browser() as opened:
        yield opened
