"""A group of options in place of a parameter."""

from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from roundel.cli.groups import with_groups


def _where(
    device: Annotated[str, typer.Option(help="Where.")] = "cpu",
    number: Annotated[int | None, typer.Option("--count")] = None,
) -> dict[str, Any]:
    return {"device": device, "number": number}


def test_the_command_gets_what_the_group_makes() -> None:
    app, calls = typer.Typer(), []

    @app.command()
    @with_groups(where=_where)
    def command(name: str, where: dict[str, Any], flag: Annotated[bool, typer.Option()] = False) -> None:
        """What it does."""
        calls.append((name, where, flag))

    runner = CliRunner()
    assert runner.invoke(app, ["a"]).exit_code == 0
    assert runner.invoke(app, ["--flag", "b", "--count", "3", "--device", "cuda"]).exit_code == 0
    assert calls == [
        ("a", {"device": "cpu", "number": None}, False),
        ("b", {"device": "cuda", "number": 3}, True),
    ]
    said = runner.invoke(app, ["--help"]).output
    assert all(words in said for words in ("What it does.", "Where.", "--count", "--flag"))
    assert "--where" not in said
