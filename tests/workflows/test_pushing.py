"""What a run wrote goes to the hub as it is, and whatever the hub does, one error says so and the folder stays."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest
from huggingface_hub import metadata_load
from safetensors.torch import load_file

import roundel
from hub import Hub
from roundel.cli.app import main
from roundel.errors import HubError, ModelError, OutputError, RecipeError, RoundelError, Stopped
from roundel.system.belongings import take_stock
from roundel.workflows.hub_target import HubTarget, hub_target

pytestmark = [pytest.mark.reports, pytest.mark.slow("writes folders and uploads them")]

RTN = roundel.Recipe(method="rtn", group_size=32)
COMMIT = "1" * 40
ME = {
    "name": "acme",
    "orgs": [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}],
    "auth": {"accessToken": {"role": "write"}},
}


@pytest.fixture
def mine(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that knows the token of this machine; requests that fail are not tried again after a while, but at once."""
    hub.people["secret"] = ME
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(
        constants, "HF_HUB_DISABLE_XET", True
    )  # whose protocol the hub of the tests does not speak
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return hub


@pytest.fixture(scope="module")
def written(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "small"
    roundel.quantize(llama, RTN, output=out, held_out=None)
    return out


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "small"))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Told(roundel.Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def command(*arguments: Any) -> int:
    before, sys.argv = sys.argv, ["roundel", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as leaving:
            main()
    finally:
        sys.argv = before
    return int(leaving.value.code or 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_was_written_is_what_is_there(streamed: bool, llama: Path, mine: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = roundel.quantize(
        llama, RTN, output=out, held_out=None, stream=streamed, push_to_hub="acme/small", private=True
    )
    assert result.uploaded == f"{mine.url}/acme/small"
    assert mine.files("acme/small") == files(out)
    assert mine.private == {"acme/small"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
    assert metadata_load(out / "README.md")["quantized_by"] == "acme"
    assert "vllm serve acme/small" in (out / "README.md").read_text(encoding="utf-8")
    take_stock(out)
    again = roundel.load("acme/small", packed=False)[0].state_dict()
    assert again.keys() == roundel.load(out, packed=False)[0].state_dict().keys()


def test_by_the_library_s_other_way(folder: Path, mine: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, as it uploads where hf_xet is installed; of small files only, since their stores need no protocol."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    mine.large = ()
    roundel.push(folder, "acme/small")
    assert mine.files("acme/small") == files(folder)


def test_the_commands(
    llama: Path, folder: Path, mine: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("push", folder, "small") == 0  # in one's own namespace
    assert f"Uploaded to {mine.url}/acme/small" in capsys.readouterr().out
    assert mine.files("acme/small") == files(folder)
    assert not mine.private
    given = ("--method", "rtn", "--group-size", "32", "--held-out", "none")
    assert (
        command("quantize", llama, "-o", tmp_path / "o", *given, "--push-to-hub", "team/b", "--private") == 0
    )
    assert f"Uploaded to {mine.url}/team/b" in capsys.readouterr().out
    assert mine.files("team/b") == files(tmp_path / "o")
    assert mine.private == {"team/b"}


def test_only_what_roundel_wrote_goes_up(folder: Path, mine: Hub) -> None:
    wanted = files(folder)
    (folder / "thesis.tex").write_text("years", encoding="utf-8")
    (folder / "notes [1]").mkdir()
    (folder / "notes [1]" / "config.json").write_text("{}", encoding="utf-8")
    roundel.push(folder, "acme/small")
    assert mine.files("acme/small").keys() == wanted.keys()


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda f: change(f / "model.safetensors"), OutputError, "model.safetensors of .* was changed since"),
        (lambda f: (f / "config.json").unlink(), OutputError, "config.json of .* is missing"),
        (lambda f: change(f / "roundel.json"), OutputError, "holds no roundel.json as roundel wrote it"),
        (lambda f: (f / "roundel.json").unlink(), ModelError, "no roundel.json"),
        (lambda f: (f / "report.json").write_text("{"), ModelError, "report.json cannot be read"),
        (lambda f: shutil.rmtree(f), ModelError, "no roundel.json"),
    ],
)
def test_what_is_not_whole_stays_here(
    damage: Callable[[Path], Any], kind: type[RoundelError], words: str, folder: Path, mine: Hub
) -> None:
    damage(folder)
    before = files(folder)
    with pytest.raises(kind, match=words):
        roundel.push(folder, "acme/small")
    assert mine.asked == []
    assert files(folder) == before


def test_a_card_that_somebody_edited_goes_up(folder: Path, mine: Hub) -> None:
    (folder / "README.md").write_text("Mine.", encoding="utf-8")
    roundel.push(folder, "acme/small")
    assert mine.files("acme/small")["README.md"] == b"Mine."
    (folder / "README.md").unlink()
    (folder / "README.md").write_text("Mine, too.", encoding="utf-8")
    told = Told()
    roundel.push(folder, "acme/small", progress=told)  # and stays, where it is nobody's but mine
    assert mine.files("acme/small")["README.md"] == b"Mine."
    assert any("README.md of acme/small is not roundel's" in line for line in told.said)


def test_of_an_earlier_upload_nothing_stays_that_would_be_opened(
    folder: Path, llama: Path, mine: Hub, tmp_path: Path
) -> None:
    roundel.quantize(llama, RTN.with_settings(format="roundel"), output=tmp_path / "own", held_out=None)
    roundel.push(tmp_path / "own", "acme/small")
    assert "roundel.safetensors" in mine.files("acme/small")
    theirs = mine.home / "theirs"
    shutil.copytree(mine.commits["acme/small"][mine.branches["acme/small"]["main"]], theirs)
    for name in ("notes.txt", "other.gguf", "README.md"):
        (theirs / name).write_text("mine", encoding="utf-8")
    mine.add("acme/small", theirs, COMMIT)
    roundel.push(folder, "acme/small")
    found = mine.files("acme/small")
    assert found.keys() == {*files(folder), "notes.txt", "other.gguf"}
    assert found["README.md"] == b"mine"
    assert found["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert load_file(folder / "model.safetensors")


EARLY: list[tuple[str, Callable[[Hub, pytest.MonkeyPatch], Any], str]] = [
    ("a/b/c", lambda hub, m: None, "'a/b/c' is no name of a repository"),
    ("", lambda hub, m: None, "'' is no name of a repository"),
    ("acme/a b", lambda hub, m: None, "is no name of a repository"),
    ("acme/a", lambda hub, m: m.setattr(constants, "HF_HUB_OFFLINE", True), "since HF_HUB_OFFLINE is set"),
    (
        "acme/a",
        lambda hub, m: m.setattr("huggingface_hub.hf_api.get_token", lambda: None),
        "there is no token",
    ),
    ("acme/a", lambda hub, m: hub.people.clear(), "the hub refuses the token"),
    (
        "acme/a",
        lambda hub, m: m.setattr(constants, "ENDPOINT", "http://127.0.0.1:1"),
        "the hub cannot be asked",
    ),
    (
        "acme/a",
        lambda hub, m: hub.people["secret"].update(auth={"accessToken": {"role": "read"}}),
        "may not write there",
    ),
    ("acme/there", lambda hub, m: hub.closed.add("acme/there"), "the token may not write there"),
    (
        "others/a",
        lambda hub, m: None,
        "may not make repositories of others; a name in acme, team, readers is expected",
    ),
    ("readers/a", lambda hub, m: None, "may not make repositories of readers"),
    ("acme/there", lambda hub, m: None, r"holds the weights of another model \(model.safetensors\)"),
]


@pytest.mark.parametrize(
    ("repo", "arrange", "words"), EARLY, ids=[f"{repo}-{words[:24]}" for repo, _, words in EARLY]
)
def test_before_the_work_it_is_seen_that_it_can_be_done(
    repo: str,
    arrange: Callable[[Hub, pytest.MonkeyPatch], Any],
    words: str,
    llama: Path,
    folder: Path,
    mine: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine.people["secret"] = dict(ME)
    mine.add("acme/there", llama, COMMIT)
    arrange(mine, monkeypatch)
    monkeypatch.setattr(
        "roundel.workflows.request.open_model", lambda *_, **__: pytest.fail("the work has begun")
    )
    for push in (
        lambda: roundel.quantize(llama, RTN, output=tmp_path / "out", held_out=None, push_to_hub=repo),
        lambda: roundel.push(folder, repo),
    ):
        with pytest.raises(HubError, match=words) as found:
            push()
        assert "\n" not in str(found.value)
        assert "secret" not in str(found.value)
    assert mine.asked == []
    assert {p.name for p in tmp_path.iterdir()} <= {"small", "hub-cache"}


def test_a_public_repository_is_not_taken_for_a_private_one(folder: Path, mine: Hub) -> None:
    roundel.push(folder, "acme/small")
    with pytest.raises(HubError, match="there already, and public"):
        roundel.push(folder, "acme/small", private=True)
    mine.private.add("acme/small")
    roundel.push(folder, "acme/small", private=True)


def test_a_token_for_some_places_only_is_not_judged_by_what_the_hub_leaves_out(
    folder: Path, mine: Hub
) -> None:
    mine.people["secret"] = {"name": "acme", "orgs": [], "auth": {"accessToken": {"role": "fineGrained"}}}
    roundel.push(folder, "team/small")
    assert mine.files("team/small") == files(folder)


@pytest.mark.parametrize(
    ("part", "code", "why"),
    [
        ("repos/create", 403, "the token may not write there"),
        ("repos/create", 401, "the hub refuses the token"),
        ("validate-yaml", 500, ""),
        ("preupload", 403, "the token may not write there"),
        ("preupload", None, ""),
        ("objects/batch", 500, ""),
        ("stored", 403, ""),
        ("stored", None, ""),
        ("commit", 403, "the token may not write there"),
        ("commit", None, ""),
    ],
)
def test_an_upload_that_fails_can_be_tried_again(
    part: str, code: int | None, why: str, folder: Path, mine: Hub
) -> None:
    mine.faults[part] = code
    with pytest.raises(HubError, match=r"is whole, and was not uploaded to acme/small \(") as found:
        roundel.push(folder, "acme/small", private=True)
    said = str(found.value)
    assert why in said
    assert "\n" not in said
    assert f"`roundel push {folder} acme/small --private` tries again" in said
    take_stock(folder)
    mine.faults.clear()
    roundel.push(folder, "acme/small", private=True)
    assert mine.files("acme/small") == files(folder)


def test_a_run_whose_upload_fails_is_finished(llama: Path, mine: Hub, tmp_path: Path) -> None:
    mine.faults["commit"] = None
    out = tmp_path / "out"
    with pytest.raises(HubError, match=f"`roundel push {out} acme/small` tries again"):
        roundel.quantize(llama, RTN, output=out, held_out=None, push_to_hub="acme/small")
    take_stock(out)
    roundel.load(out)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []


def test_a_run_that_is_stopped_says_that_nothing_was_uploaded(llama: Path, mine: Hub, tmp_path: Path) -> None:
    class Stop(roundel.Progress):
        @property
        def stop_asked(self) -> bool:
            return (tmp_path / "out").exists()

    with pytest.raises(Stopped, match="it was not uploaded: `roundel push .*out acme/small` does it"):
        roundel.quantize(llama, RTN, output=tmp_path / "out", push_to_hub="acme/small", progress=Stop())
    assert mine.asked == []
    take_stock(tmp_path / "out")


def test_there_must_be_something_to_upload(llama: Path, mine: Hub) -> None:
    with pytest.raises(RecipeError, match="there is no folder to upload"):
        roundel.quantize(llama, RTN, push_to_hub="acme/small")
    with pytest.raises(RecipeError, match="name one, or leave it out"):
        roundel.quantize(llama, RTN, private=True)


def test_of_several_ranks_the_first_asks_the_hub(mine: Hub) -> None:
    mine.people.clear()
    assert hub_target("acme/small", False, writes=True, first=False) == HubTarget("acme/small", False)
    with pytest.raises(HubError):
        hub_target("acme/small", False, writes=True, first=True)
