"""Every public name of the package is there, under the name that the type checker knows too."""

import ast
from pathlib import Path

import roundel


def test_each_is_there() -> None:
    for name in roundel.__all__:
        assert getattr(roundel, name) is not None
        assert name in dir(roundel)
    everything: dict[str, object] = {}
    exec("from roundel import *", everything)
    assert set(roundel.__all__) <= everything.keys()


def test_the_checker_sees_the_same() -> None:
    """The imports for it are not run, and the homes that are used are not checked."""
    tree = ast.parse(Path(roundel.__file__).read_text(encoding="utf-8"))
    (typing,) = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {
        alias.name: node.module
        for node in typing.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes.keys() == set(roundel.__all__)
    for name, module in homes.items():
        assert getattr(roundel, name).__module__.startswith("roundel.")
        assert f"roundel.{roundel._HOMES.get(name, 'api')}" == module
