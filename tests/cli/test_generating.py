"""What `roundel generate` writes where: text on stdout as it comes, everything else on stderr."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import roundel
from roundel.cli import display
from roundel.cli.app import main

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}<assistant>"
SPEED = re.compile(r"^\d+ prompt tokens at [\d.]+ per second, \d+ new tokens at [\d.]+ per second$")


def run(capsys, monkeypatch, *words: object, stdin: str = "") -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["roundel", *map(str, words)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as leaving:
        main()
    said = capsys.readouterr()
    return int(leaving.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def chatting(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_stdout_is_the_text_alone(llama: Path, capsys, monkeypatch) -> None:
    wanted = roundel.generate(llama, "The statement", max_new_tokens=9)
    code, out, err = run(capsys, monkeypatch, "generate", llama, "The statement", "--max-new-tokens", 9)
    assert (code, out) == (0, wanted + "\n")
    assert SPEED.match(" ".join(err.split()))


def test_a_chat_takes_turns_from_lines(chatting: Path, capsys, monkeypatch) -> None:
    said = roundel.chat(chatting, ["The", "A class", "An object"], max_new_tokens=6)
    answers = [turn["content"] + "\n" for turn in said if turn["role"] == "assistant"]
    words = ("generate", chatting, "--chat", "--max-new-tokens", 6)
    code, out, err = run(capsys, monkeypatch, *words, stdin="The\n\nA class\n/exit\nAn object\n")
    assert (code, out) == (0, "".join(answers[:2]))
    assert SPEED.match(" ".join(err.split()))
    code, out, _ = run(capsys, monkeypatch, *words[:2], "The", *words[2:], stdin="A class\nAn object")
    assert (code, out) == (0, "".join(answers))
    assert run(capsys, monkeypatch, *words) == (0, "", "")


def test_pieces_are_written_as_they_are(monkeypatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(display, "out", display.PlainConsole(file=file, width=10, force_terminal=True))
    for piece in ("a\tb", " [bold]long words", " 123 :smile:", "\x1b[2J", "\n"):
        display.show_text(piece)
    assert file.getvalue() == "a\tb [bold]long words 123 :smile:\\x1b[2J\n"


@pytest.mark.slow("starts a process")
def test_a_reader_who_leaves_is_no_error(llama: Path) -> None:
    command = [sys.executable, "-m", "roundel", "generate", str(llama), "The", "--max-new-tokens", "300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(3) == b"The"
    process.stdout.close()
    said = process.stderr.read().decode()
    process.wait(120)
    assert "Traceback" not in said
