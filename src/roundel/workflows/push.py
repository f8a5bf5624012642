"""Uploading an output folder to the hub: the files that its manifest lists, its report and its card, and nothing else.

What an earlier upload of Roundel left in the repository and this folder does not have (other shards, another format's
weights) is removed there in the same upload, or the two would be taken for one model. Everything else in the repository
stays, and so does a card that was written or edited there.
"""

from glob import escape
from pathlib import Path
from shlex import quote
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from roundel.errors import HubError, OutputError
from roundel.formatting import kind_and_line
from roundel.records.manifest import read_manifest
from roundel.system.belongings import CARD, MANIFEST, PAGE, REPORT, listed_in, own_files
from roundel.system.progress import Progress
from roundel.system.seal import Kind, is_sealed
from roundel.workflows.hub_target import HubTarget, check_target_on_hub, status
from roundel.workflows.report import is_own_card, read_report, renew_card

# Of these, an edited one goes up as it is: what people write about a model is theirs.
_WORDS = (CARD, REPORT, PAGE)
_REPORTS: dict[str, Kind] = {REPORT: "report", PAGE: "page"}
# GGUF files stand alone: several widths of a model are kept in one repository.
_STANDS_ALONE = ".gguf"


def push_existing(folder: Path, repo: str, *, private: bool, progress: Progress) -> str:
    """Upload a folder that a run wrote before; the address of its page on the hub.

    Args:
        folder: see there.
        repo: `namespace/name`, or a name in the token's own namespace.
        private: only for its owners to see, where it is made.
        progress: gets what is done, in words.

    Raises:
        RoundelError: the folder is not whole, or the hub does not take it.
    """
    whole_files(folder)
    return push_folder(folder, check_target_on_hub(repo, private=private), progress)


def push_folder(folder: Path, target: HubTarget, progress: Progress) -> str:
    """Upload an output folder; the address of its page on the hub.

    Args:
        folder: that a run wrote.
        target: which was looked at.
        progress: gets what is done, in words.

    Raises:
        ModelError: the folder has no manifest, or no readable report.
        OutputError: a file of it is missing or was changed.
        HubError: the upload failed; the message says how to try again.
    """
    report = read_report(folder)
    if is_own_card(folder):
        renew_card(folder, report, progress, target.repo)  # with commands for this name
    names = whole_files(folder)
    try:
        with progress.stage(f"Uploading to {target.repo}", 1):
            address = _upload(folder, names, target, progress)
            progress.advance()
    # Whatever it is, the folder is whole.
    except Exception as error:
        raise HubError(
            f"{folder} is whole, and was not uploaded to {target.repo} ({_why(error)}): "
            f"`{push_again(folder, target)}` tries again"
        ) from error
    return address


def push_again(folder: Path, target: HubTarget) -> str:
    """The command that uploads a folder."""
    return f"roundel push {quote(str(folder))} {target.repo}" + (" --private" if target.private else "")


def whole_files(folder: Path) -> list[str]:
    """The names of all files of an output folder that go up.

    Raises:
        ModelError: it is none.
        OutputError: a file is missing or was changed.
    """
    read_manifest(folder)
    found = own_files(folder)
    for name, ours in found.items():
        if not ours and name not in _WORDS:
            how = "was changed since" if (folder / name).exists() else "is missing"
            raise OutputError(
                f"{name} of {folder} {how}: the folder as roundel quantize wrote it is expected; what was changed can "
                "be uploaded as any other folder is (hf upload)"
            )
    return [name for name in found if (folder / name).is_file()]


def _upload(folder: Path, names: list[str], target: HubTarget, progress: Progress) -> str:
    api, repo = HfApi(), target.repo
    address: Any = api.create_repo(repo, private=target.private or None, exist_ok=True)
    there = {file.rfilename for file in api.model_info(repo).siblings or []}
    if CARD in there and not is_sealed(Path(hf_hub_download(repo, CARD)), "card"):
        progress.say(f"The {CARD} of {repo} is not roundel's, and stays as it is")
        names = [name for name in names if name != CARD]
    stale = _stale(repo, there) - set(names)
    api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        allow_patterns=[escape(name) for name in names],
        delete_patterns=[escape(name) for name in sorted(stale)] or None,
        commit_message="Quantized by Roundel",
    )
    return str(address)


def _stale(repo: str, there: set[str]) -> set[str]:
    """What Roundel uploaded there before, by the manifest that it left."""
    if MANIFEST not in there:
        return set()
    listed = listed_in(Path(hf_hub_download(repo, MANIFEST)))
    sealed = {
        name
        for name, kind in _REPORTS.items()
        if name in there and is_sealed(Path(hf_hub_download(repo, name)), kind)
    }
    return sealed | {name for name in listed & there if not name.endswith(_STANDS_ALONE)}


def _why(error: Exception) -> str:
    number = status(error)
    if number == 401:
        return "the hub refuses the token"
    if number == 403:
        return "the token may not write there"
    return kind_and_line(error)
