"""Whatever something is called, it is shown by that name, and nothing of the name is read as anything else."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from roundel.cli import display
from roundel.cli.app import main
from roundel.cli.display import PlainConsole, TerminalProgress
from roundel.formatting import printable
from roundel.report.parts.template import fill
from roundel.system.files import json_text
from zoo import zoo_model

pytestmark = [pytest.mark.reports, pytest.mark.slow("runs every command on every kind of name")]

# Of every language that some library on the way might read in a name.
PIECES = [
    "[red]", "[/y]", "[/]", "[link=x]", "\\[", ":smile:", "$x_{", "{0}", "{{ y }}", "{% z %}", "%s", "<b>", "&amp;",
    '"', "'", "-->", "</title>", "\x1b[31m", "\x07", "\x9b2J", "\n", "\t", "\udcff", "\u202e", "é", "漢", " ", "x",
]  # fmt: skip
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
WHOLE = "[red]x[/y] :smile: $x_{ {0} {{ y }} %s <b>&amp;\"'--></title> a\x1b[31m\x07b\nc"


def shown(console_prints) -> str:
    """What a console writes, without colours and line breaks."""
    file = io.StringIO()
    console_prints(PlainConsole(file=file, width=10_000, force_terminal=False))
    return file.getvalue()


@given(NAMES)
def test_lines_tables_and_titles_show_a_name(name: str) -> None:
    wanted = printable(name).split()

    def as_line(console: PlainConsole) -> None:
        console.print(name, soft_wrap=True)
        console.print(name, style="bold red")

    def as_table(console: PlainConsole) -> None:
        table = Table(name, title=name, caption=name)
        table.add_row(name)
        console.print(table)

    for prints in (as_line, as_table):
        found = shown(prints)
        assert all(word in found for word in wanted), (found, wanted)
        assert "\x1b" not in found


@given(NAMES)
def test_bars_show_a_name(name: str) -> None:
    file = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display, "err", PlainConsole(file=file, width=10_000, force_terminal=True))
        with TerminalProgress().stage(name, 2) as stage:
            stage.advance(1, name)
            stage.say(name)
    found = Text.from_ansi(file.getvalue()).plain
    assert all(word in found for word in printable(name).split())


@given(NAMES)
def test_json_and_pages_are_utf8_and_hold_the_name(name: str) -> None:
    assert json.loads(json_text({"name": name}, indent=1).encode())["name"] == name
    assert "\x1b" not in fill("base.html.j2", title=name, seal="").encode().decode()


def test_a_name_that_is_no_text_is_refused_before_the_work(tmp_path: Path, capsys, monkeypatch) -> None:
    """safetensors reads and writes no such path."""
    monkeypatch.chdir(tmp_path)
    name, model = "b\udcffd", str(zoo_model("llama"))
    shutil.copytree(model, name)
    for words in (
        ("inspect", name),
        ("quantize", name, "-o", "out"),
        ("quantize", model, "-o", f"{name}.out", "--method", "rtn"),
        ("sweep", model, "--recipes", "rtn-w4g128", "-o", f"{name}.sweep"),
        ("plan", name),
        ("eval", name, "--text", "pydoc"),
        ("compare", name, "--reference", model, "--text", "pydoc"),
        ("generate", name, "x"),
        ("bench", name),
    ):
        monkeypatch.setattr(sys, "argv", ["roundel", *words])
        with pytest.raises(SystemExit) as leaving:
            main()
        assert leaving.value.code in (3, 6)
        said = " ".join(capsys.readouterr().err.split())
        assert "b\\udcffd" in said
        assert "is no text in UTF-8" in said
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_every_command_takes_any_name(held_out: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = WHOLE
    model, text, recipe, out = (f"{name}{end}" for end in ("", ".txt", ".yaml", ".out"))
    shutil.copytree(zoo_model("llama"), model)
    shutil.copy(held_out, text)
    Path(recipe).write_text("method: rtn\nstart: search\nbits: 4\ngroup_size: 32\nnsamples: 8\nseqlen: 32\n")

    def run(*words: str | int) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["roundel", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        return leaving.value.code, captured.out + captured.err

    on_text = ("--text", text, "--window", 32, "--limit", 2)
    common = ("--recipe", recipe, "--calibration", text)
    for words in (
        ("inspect", model),
        ("plan", model, *common),
        ("quantize", model, "-o", out, *common, "--held-out", text),
        ("report", out),
        ("inspect", out),
        ("eval", out, "--reference", model, *on_text, "--json", f"{name}.json", "--cache", f"{name}.cache"),
        ("compare", out, "--reference", model, *on_text, "--page", f"{name}.html"),
        ("generate", out, name, "--max-new-tokens", 2),
        ("bench", model, out, "--prompt", 8, "--context", 4, "--new", 2, "--rounds", 1, "--threads", 1),
        (
            "sweep",
            model,
            "--recipes",
            recipe,
            "-o",
            f"{name}.sweep",
            "--calibration",
            text,
            "--held-out",
            text,
        ),
    ):
        code, said = run(*words)
        assert code == 0, said
        assert "\x1b" not in said
    for page in (Path(out) / "report.html", Path(f"{name}.html")):
        assert "{{" not in page.read_text(encoding="utf-8").replace("{{ y }}", "")

    # Nothing of that name is there: one message, which says it.
    absent = f"{name}-absent"
    for words in (
        ("inspect", absent),
        ("quantize", absent, "-o", "o"),
        ("quantize", model, "-o", "o", "--recipe", absent),
        ("quantize", model, "-o", "o", "--set", absent),
        ("quantize", model, "-o", "o", "--calibration", absent),
        ("quantize", model, "-o", out, *common),
        ("eval", model, "--text", absent),
        ("eval", model, *on_text, "--json", f"{absent}/x.json"),
        ("compare", model, "--reference", absent, *on_text),
        ("generate", absent, "x"),
        ("generate", absent, "--chat"),
        ("bench", absent),
        ("report", absent),
        ("sweep", model, "--recipes", absent, "-o", "o"),
        (absent,),
        ("inspect", f"--{absent}"),
    ):
        code, said = run(*words)
        assert code not in (0, 1), (words, said)
        assert "error" in said.lower()
        assert "Traceback" not in said
        assert "\x1b" not in said
