"""Files of the hub, by way of its cache: only those that a model is opened with.

The hub says what there is; settings, tokenizers, code and licences come first, as they are small and an index among
them says which files hold the weights. Pickles are fetched only when they were asked for, weights of other frameworks
never. Where the hub cannot be reached (no connection, HF_HUB_OFFLINE), the cache is used as it is.
"""

from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from roundel.errors import ModelError
from roundel.formatting import UNREACHED, kind_and_line
from roundel.model.checkpoint import PICKLES, SAFETENSORS, named_files
from roundel.system.belongings import CARD, MANIFEST
from roundel.system.progress import Progress

# What is read beside the weights, or goes with them; in folders of its own lies what is another form of the model.
_SMALL = (
    *("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.bpe", "*.vocab", "*.py"),
    *("LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*", "USAGE_POLICY*"),
    CARD,  # which says under which licence it is
)
_TEMPLATES = "additional_chat_templates/*.jinja"
_ADAPTER, _ADAPTER_WEIGHTS, _ADAPTER_PICKLE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# The base of what its HTTP library raises is the base of its own error.
_FAULTS = (OSError, ValueError, RuntimeError, EntryNotFoundError, *HfHubHTTPError.__bases__)


def is_hub_id(name: str) -> bool:
    """Whether a name may be one of the hub's; a path that says where it begins may not."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def fetch_model(
    repo: str, revision: str | None, *, allow_pickle: bool, progress: Progress
) -> tuple[Path, str]:
    """The folder in the cache that holds all that a model is opened with, and the commit that it is of.

    Args:
        repo: hub id.
        revision: branch, tag or commit; None: the main branch.
        allow_pickle: pickled weights are taken where there are no safetensors.
        progress: gets the weights that are fetched.

    Raises:
        ModelError: the hub does not give it, and it is not in the cache.
    """
    try:
        names = _listing(repo, revision)
    except _FAULTS as error:
        folder = cached_model(repo, revision)
        if folder is None:
            raise _refused(repo, revision, error) from error
        return folder, folder.name
    small = [name for name in names if _is_small(name)]
    try:
        folder = _fetch(repo, revision, small)
        weights = _weights(repo, folder, names, allow_pickle)
        absent = [name for name in weights if not (folder / name).exists()]
        if absent:
            with progress.stage(f"Fetching the weights of {repo} from the hub", len(absent)):
                for name in absent:
                    progress.check_stop()
                    _fetch(repo, revision, [name])
                    progress.advance(note=name)
    except _FAULTS as error:
        raise _refused(repo, revision, error) from error
    return folder, folder.name


def fetch_file(repo: str, name: str, revision: str | None) -> tuple[Path, str]:
    """A single file of a hub id in the cache, with the card beside it, and the commit that it is of.

    Args:
        repo, revision: as for `fetch_model`.
        name: of the file.

    Raises:
        ModelError: the hub does not give it, and it is not in the cache.
    """
    cached = try_to_load_from_cache(repo, name, revision=revision)
    try:
        names = _listing(repo, revision)
        if name not in names:
            raise ModelError(f"{repo} has no file {name} on the hub: the name of one that it has is expected")
        if CARD in names:
            hf_hub_download(repo, CARD, revision=revision)
        path = Path(hf_hub_download(repo, name, revision=revision))
    except _FAULTS as error:
        if not isinstance(cached, str):
            raise _refused(repo, revision, error) from error
        path = Path(cached)
    return path, path.parent.name


def _listing(repo: str, revision: str | None) -> list[str]:
    """Names of all files; asked once, since behind it is the cache."""
    return [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or []]


def _fetch(repo: str, revision: str | None, names: list[str]) -> Path:
    return Path(snapshot_download(repo, revision=revision, allow_patterns=[escape(name) for name in names]))


def cached_model(repo: str, revision: str | None) -> Path | None:
    """The folder in the cache, whole or not, of a model for which the hub is not asked."""
    for name in ("config.json", _ADAPTER):
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _is_small(name: str) -> bool:
    if "/" in name:
        return fnmatch(name, _TEMPLATES)
    return any(fnmatch(name, pattern) for pattern in _SMALL)


def _weights(repo: str, folder: Path, names: list[str], allow_pickle: bool) -> list[str]:
    """The files with the weights, of which a model is opened from one kind."""
    if MANIFEST in names:  # what Roundel wrote has files of its own
        return [name for name in names if fnmatch(name, "*.safetensors") and "/" not in name]
    found = [name for name in (_ADAPTER_WEIGHTS,) if name in names]
    if _ADAPTER in names and not found and allow_pickle:
        found = [name for name in (_ADAPTER_PICKLE,) if name in names]
    for entry in (*SAFETENSORS, *(PICKLES if allow_pickle else ())):
        if entry in names:
            return found + (named_files(folder / entry) if entry.endswith(".json") else [entry])
    if found:
        return found
    if any(name in names for name in PICKLES):
        raise ModelError(
            f"{repo} holds pickled weights only on the hub, which can carry code: safetensors are expected. Take a "
            "revision or a model that has them, or pass --allow-pickle (they are then read with weights_only)"
        )
    single = sorted(name for name in names if name.endswith(".gguf"))
    if single:
        some = ", ".join(f"{repo}/{name}" for name in single[:3]) + (", ..." if len(single) > 3 else "")
        raise ModelError(f"{repo} holds GGUF files: name one of them ({some})")
    raise ModelError(f"no weights in {repo} on the hub: model.safetensors, one file or sharded, is expected")


def _refused(repo: str, revision: str | None, error: BaseException) -> ModelError:
    what = repo if revision is None else f"revision {revision} of {repo}"
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{repo} is gated: accept its conditions on the hub and log in (hf auth login), or give a folder"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"{repo} has no revision {revision} on the hub: a branch, a tag or a commit is expected"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"there is no folder {repo}, and the hub knows no model of this id, or shows it to its owners only: a "
            "folder or a hub id is expected; log in (hf auth login) for a private one"
        )
    why = kind_and_line(error) if isinstance(error, HfHubHTTPError) else UNREACHED
    return ModelError(
        f"there is no folder {repo}, and as a hub id it cannot be opened: {what} cannot be had ({why}); a model "
        "folder, or a hub that can be reached, is expected"
    )
