"""A seal fits what Roundel wrote, byte for byte."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import roundel
from roundel.errors import OutputError
from roundel.system.seal import check_place, is_sealed, sealed, unsealed, write_sealed

ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANY
@given(
    before=st.binary(max_size=60),
    after=st.binary(max_size=60),
    place=st.integers(0, 200),
    bit=st.integers(0, 7),
)
def test_any_changed_bit_breaks_it(before: bytes, after: bytes, place: int, bit: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytearray(sealed(before + unsealed("figures").encode() + after, "figures"))
    path.write_bytes(content)
    assert is_sealed(path, "figures")
    assert not is_sealed(path, "page")
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert not is_sealed(path, "figures")


@ANY
@given(content=st.binary(min_size=1))
def test_what_somebody_wrote_is_not_replaced(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="exists, and is no file of figures as roundel wrote it"):
        write_sealed(path, "figures", unsealed("figures"))
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_may_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    check_place(path, "figures")
    path.touch()  # of mktemp
    for number in range(3):
        write_sealed(path, "figures", f"{number} {unsealed('figures')}")
        assert path.read_text().startswith(str(number))
    (tmp_path / "link").symlink_to(path)
    write_sealed(tmp_path / "link", "figures", f"through {unsealed('figures')}")
    assert (tmp_path / "link").is_symlink()
    assert path.read_text().startswith("through")
    # Another kind of file is something else: figures do not take the place of a manifest.
    with pytest.raises(OutputError, match="no manifest"):
        check_place(path, "manifest")
    with pytest.raises(OutputError, match="cannot be written"):
        write_sealed(tmp_path / "absent" / "file", "figures", unsealed("figures"))


def test_predictions_are_sealed_and_can_be_read(llama: Path, held_out: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "tokens.parquet"
    for limit in (2, 3):
        roundel.evaluate(llama, text=str(held_out), window=32, limit=limit, per_token=path)
        assert is_sealed(path, "predictions")
        assert parquet.read_table(path).num_rows == 32 * limit
    parquet.write_table(parquet.read_table(path).drop_columns("token"), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="no file of predictions as roundel wrote it"):
        roundel.evaluate(llama, text=str(held_out), window=32, limit=2, per_token=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_commands_refuse_before_any_work(
    command: str, llama: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from roundel.cli.app import main

    text = tmp_path / "text.txt"
    text.write_text("once upon a time " * 400)

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["roundel", command, str(llama), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    figures, page = tmp_path / "figures.json", tmp_path / "page.html"
    files = {"--json": figures} | ({"--page": page} if command == "compare" else {})
    given = ["--reference", llama, "--text", text, "--window", 32, "--limit", 1]
    given += [part for option in files.items() for part in option]
    overwrite = ["--overwrite"] if command == "compare" else []
    for file in files.values():
        file.write_text("mine")
        with monkeypatch.context() as patched:
            patched.setattr(
                f"roundel.api.{'evaluate' if command == 'eval' else 'compare'}",
                lambda *a, **k: 1 / 0,
            )
            assert run(*given, *overwrite) == OutputError.exit_code
        assert file.read_text() == "mine"
        assert file.name in capsys.readouterr().err
        file.unlink()
    assert run(*given) == 0
    assert run(*given, *overwrite) == 0
    assert is_sealed(figures, "figures")
    assert json.loads(figures.read_text())["seal"].startswith("roundel-figures-")
    if command == "compare":
        assert is_sealed(page, "comparison")
