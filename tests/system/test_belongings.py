"""Overwriting takes what Roundel wrote, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import roundel
from roundel.errors import OutputError
from roundel.records.manifest import write_manifest
from roundel.report.page import write_page
from roundel.system.belongings import list_files, remove, take_stock
from roundel.system.seal import unsealed, write_sealed

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
pytestmark = [pytest.mark.reports, pytest.mark.slow("kills runs at each step of a replacement")]

RTN = roundel.Recipe(method="rtn", group_size=32)


def make(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_text(f"{number}")
    (folder / "code").mkdir()
    (folder / "code" / "a.py").write_text("1")
    write_manifest(folder, {"source": "x"})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ours=st.lists(NAMES, unique_by=str.casefold, max_size=4),
    theirs=NAMES,
    below=st.booleans(),
    how=st.sampled_from(["file", "folder", "link", "dangling", "changed", "same size"]),
)
def test_any_foreign_file_is_named_and_stays(
    ours: list[str], theirs: str, below: bool, how: str, tmp_path: Path
) -> None:
    taken = {"code", "roundel.json", "report.json", "report.html", "readme.md"}
    ours = [name for name in ours if name.casefold() not in taken]
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    make(folder, ours)
    assert sorted(take_stock(folder).ours) == sorted([*ours, "code/a.py", "roundel.json"])
    home = folder / "code" if below else folder
    path = home / theirs
    if how in ("changed", "same size"):
        path = folder / "code" / "a.py"
        path.write_text("longer" if how == "changed" else "2")
    elif theirs in {entry.name for entry in home.iterdir()}:
        return
    elif how == "file":
        path.write_text("years")
    elif how == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "code" / "a.py" if how == "link" else "nowhere")
    with pytest.raises(OutputError, match="which roundel did not write") as refused:
        take_stock(folder)
    assert path.relative_to(folder).as_posix() in str(refused.value)
    assert path.is_symlink() or path.exists()


def test_what_came_after_the_look_is_not_removed(tmp_path: Path) -> None:
    make(tmp_path / "out", ["a", "b"])
    stock = take_stock(tmp_path / "out")
    (tmp_path / "out" / "a").write_text("changed meanwhile")
    (tmp_path / "out" / "code" / "notes").write_text("mine")
    assert not remove(stock)
    left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == ["a", "notes"]
    make(tmp_path / "other", ["a", "b"])
    assert remove(take_stock(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_the_manifest_itself_and_the_report_are_known_by_their_seals(tmp_path: Path) -> None:
    make(tmp_path / "out", [])
    write_sealed(tmp_path / "out" / "report.json", "report", json.dumps({"seal": unsealed("report")}))
    take_stock(tmp_path / "out")
    (tmp_path / "out" / "report.html").write_text("<p>my own page")
    with pytest.raises(OutputError, match=r"holds report\.html \(changed since\)"):
        take_stock(tmp_path / "out")
    (tmp_path / "out" / "report.html").unlink()
    manifest = tmp_path / "out" / "roundel.json"
    manifest.write_text(manifest.read_text().replace("source", "sauce"))
    with pytest.raises(OutputError, match=r"holds a roundel\.json that was changed since, or that an older"):
        take_stock(tmp_path / "out")


def test_the_manifest_lists_sizes_and_hashes(llama: Path, tmp_path: Path) -> None:
    from hashlib import sha256

    roundel.quantize(llama, RTN, output=tmp_path / "out", held_out=None)
    listed = json.loads((tmp_path / "out" / "roundel.json").read_text())["files"]
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    beside = {"roundel.json", "report.json", "report.html", "README.md"}
    assert listed.keys() == found.keys() - beside
    for name, about in listed.items():
        assert about == {"bytes": len(found[name]), "sha256": sha256(found[name]).hexdigest()}
    assert listed == list_files(tmp_path / "out")


def test_quantize_overwrites_its_own_folder_and_no_other(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    for how in ({}, {"restart": True}):
        with pytest.raises(OutputError, match=r"mine holds thesis\.tex, which roundel did not write"):
            roundel.quantize(llama, RTN, output=out, overwrite=True, **how)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (out / "thesis.tex").unlink()
    roundel.quantize(llama, RTN, output=out, overwrite=True)
    roundel.quantize(llama, RTN.with_settings(bits=3), output=out, overwrite=True)
    assert json.loads((out / "roundel.json").read_text())["recipe"]["bits"] == 3
    # The page made anew is still ours.
    roundel.render_report(out)
    roundel.quantize(llama, RTN, output=out, overwrite=True, held_out=None)
    (out / "config.json").write_text((out / "config.json").read_text() + " ")
    with pytest.raises(OutputError, match=r"holds config\.json \(changed since\)"):
        roundel.quantize(llama, RTN, output=out, overwrite=True)


def test_sweep_overwrites_its_own_folders_and_no_other(llama: Path, tmp_path: Path) -> None:
    recipes = [RTN.with_settings(name="one"), RTN.with_settings(name="two", bits=3)]
    roundel.sweep(llama, recipes, tmp_path / "all", held_out=None)
    (tmp_path / "all" / "notes.txt").write_text("beside the folders")
    roundel.sweep(llama, recipes, tmp_path / "all", held_out=None, overwrite=True)
    assert (tmp_path / "all" / "notes.txt").read_text() == "beside the folders"
    (tmp_path / "all" / "two" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"two holds notes\.txt"):
        roundel.sweep(llama, recipes, tmp_path / "all", held_out=None, overwrite=True)
    # Without it, what is there is left alone, notes and all.
    roundel.sweep(llama, recipes, tmp_path / "all", held_out=None)
    assert (tmp_path / "all" / "two" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("what", ["folder", "link"])
def test_a_foreign_folder_of_the_journals_name(what: str, llama: Path, tmp_path: Path) -> None:
    foreign = tmp_path / (".out.roundel" if what == "folder" else "elsewhere")
    foreign.mkdir()
    for name in ("run.json", "piece-00000.safetensors", "sealed"):
        (foreign / name).write_text("mine")
    if what == "link":
        (tmp_path / ".out.roundel").symlink_to(foreign)
    with pytest.raises(OutputError, match=r"\.out\.roundel, where the work on .* which roundel did not make"):
        roundel.quantize(llama, RTN, output=tmp_path / "out", restart=True)
    assert {path.name: path.read_text() for path in foreign.iterdir()} == dict.fromkeys(
        ("run.json", "piece-00000.safetensors", "sealed"), "mine"
    )
    assert not (tmp_path / "out").exists()


def test_a_file_that_somebody_put_into_the_journal_stays(llama: Path, tmp_path: Path, monkeypatch) -> None:
    from roundel.engine.journal import Journal

    begin = Journal.begin

    def dropping(journal: Journal, *given: object) -> None:
        begin(journal, *given)
        (journal.folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(Journal, "begin", dropping)
    roundel.quantize(llama, RTN, output=tmp_path / "out", held_out=None)
    left = sorted(path.name for path in (tmp_path / ".out.roundel").iterdir())
    assert left == ["lock", "notes.txt", "roundel-work"]
    roundel.quantize(llama, RTN, output=tmp_path / "out", held_out=None, overwrite=True, restart=True)
    assert (tmp_path / ".out.roundel" / "notes.txt").read_text() == "mine"


def test_a_page_of_somebodys_is_not_replaced(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    roundel.quantize(llama, RTN, output=out, held_out=None)
    (out / "report.html").write_text("mine")
    with pytest.raises(
        OutputError, match=r"report\.html exists, and is no page of a run as roundel wrote it"
    ):
        roundel.render_report(out)
    assert (out / "report.html").read_text() == "mine"
    (out / "report.html").unlink()
    write_page(out, json.loads((out / "report.json").read_text()))
    take_stock(out)
