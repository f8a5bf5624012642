"""What is done when another module has been imported."""

import importlib
import sys
from pathlib import Path

import pytest

from roundel.system.when_imported import when_imported


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module inside a package, which is not imported yet."""
    name = "watched_package.watched"
    (tmp_path / "watched_package").mkdir()
    (tmp_path / "watched_package" / "__init__.py").write_text("")
    (tmp_path / "watched_package" / "watched.py").write_text("before = 1\nafter = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for known in (name, "watched_package"):
        monkeypatch.delitem(sys.modules, known, raising=False)
    return name


def test_it_is_done_once_after_the_module_was_executed(module: str) -> None:
    seen: list[int] = []
    finders = list(sys.meta_path)
    when_imported(module, lambda: seen.append(sys.modules[module].after))
    assert seen == []
    assert module not in sys.modules
    found = importlib.import_module(module)
    assert seen == [2]
    assert sys.meta_path == finders
    importlib.import_module(module)
    importlib.reload(found)
    assert seen == [2]


def test_of_a_module_that_is_there_it_is_done_at_once(module: str) -> None:
    importlib.import_module(module)
    seen: list[int] = []
    finders = list(sys.meta_path)
    when_imported(module, lambda: seen.append(sys.modules[module].after))
    assert seen == [2]
    assert sys.meta_path == finders


def test_two_wait_for_the_same(module: str) -> None:
    seen: list[str] = []
    when_imported(module, lambda: seen.append("first"))
    when_imported(module, lambda: seen.append("second"))
    importlib.import_module(module)
    assert sorted(seen) == ["first", "second"]


def test_a_module_that_is_nowhere_is_still_nowhere() -> None:
    finders = list(sys.meta_path)
    when_imported("watched_nowhere", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("watched_nowhere")
    assert sys.meta_path == finders
