"""A repository of the hub as the place where a result goes: looked at before the work, so that hours of it do not end
at a wrong name, a missing token, or somebody else's repository.

Nothing is made there before there is something to upload: a run that fails leaves no empty repository behind. So what
is asked beforehand is who the token belongs to, whether it may write, and what the repository holds already.
"""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from roundel.errors import HubError, RecipeError
from roundel.formatting import kind_and_line
from roundel.system.belongings import MANIFEST

# Weights by which a folder is opened; those of two models in one repository would be taken for one.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
# Its HTTP library's own errors are the base of the hub's.
HUB_FAULTS = (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)
_READ_ONLY = ("read",)
_LATER = "or upload the folder another time (roundel push FOLDER REPO)"


@dataclass(frozen=True)
class HubTarget:
    """Where a folder goes.

    Attributes:
        repo: `namespace/name`.
        private: only for its owners to see, where it is made.
    """

    repo: str
    private: bool


def hub_target(repo: str | None, private: bool, *, writes: bool, first: bool) -> HubTarget | None:
    """Where on the hub a run's folder goes, looked at by the first rank; None: nowhere.

    Args:
        repo: as for `check_target_on_hub`; None: nowhere.
        private: the same.
        writes: the run writes a folder.
        first: this is the first rank.

    Raises:
        RecipeError: there is no folder to upload, or no repository to be private.
        HubError: as `check_target_on_hub`.
    """
    if repo is None:
        if private:
            raise RecipeError("--private is about the repository of --push-to-hub: name one, or leave it out")
        return None
    if not writes:
        raise RecipeError(f"there is no folder to upload to {repo}: give an output folder (output=)")
    return check_target_on_hub(repo, private=private) if first else HubTarget(repo, private)


def check_target_on_hub(repo: str, *, private: bool) -> HubTarget:
    """See that a folder can be uploaded under a name; nothing is made or changed there.

    Args:
        repo: `namespace/name`, or a name in the token's own namespace.
        private: it is to be private.

    Raises:
        HubError: no name for a repository, offline, no token, one that the hub refuses or that may not write, a public
            repository where a private one is wanted, or one with another model in it.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise HubError(
            f"{repo!r} is no name of a repository on the hub: NAMESPACE/NAME of letters, digits, -, _ and . is expected"
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"nothing can be uploaded to {repo}, since HF_HUB_OFFLINE is set: unset it, {_LATER}")
    api = HfApi()
    who = _owner(api, repo)
    target = HubTarget(repo if "/" in repo else f"{who.get('name')}/{repo}", private)
    try:
        exists = _may_write(api, target.repo)
        if exists:
            _check_content(api, target)
        else:
            _check_namespace(target.repo, who)
    except HUB_FAULTS as error:
        raise _unreached(target.repo, error) from error
    return target


def _owner(api: HfApi, repo: str) -> dict[str, Any]:
    """Whose the token is, as the hub says."""
    try:
        found: dict[str, Any] = api.whoami()
    except LocalTokenNotFoundError as error:
        raise HubError(
            f"nothing can be uploaded to {repo}: there is no token for the hub; log in (hf auth login), or set HF_TOKEN"
        ) from error
    except HUB_FAULTS as error:
        if status(error) in (401, 403):
            raise HubError(
                f"nothing can be uploaded to {repo}: the hub refuses the token; log in anew (hf auth login), or set "
                "another HF_TOKEN"
            ) from error
        raise _unreached(repo, error) from error
    return found


def _may_write(api: HfApi, repo: str) -> bool:
    """Whether there is such a repository; if so, the token may write there."""
    try:
        api.auth_check(repo, write=True)
    except RepositoryNotFoundError as error:
        if status(error) == 403:
            raise _read_only(repo) from error
        return False
    except HfHubHTTPError as error:
        if status(error) == 403:
            raise _read_only(repo) from error
        if status(error) != 404:
            raise
        return api.repo_exists(repo)  # of a hub that cannot be asked the other
    return True


def _check_namespace(repo: str, who: dict[str, Any]) -> None:
    """A repository can be made where the token's owner may, as far as the hub says."""
    namespace = repo.partition("/")[0]
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") in _READ_ONLY:
        raise _read_only(repo)
    own, orgs = who.get("name"), {org.get("name"): org for org in who.get("orgs") or []}
    if namespace == own:
        return
    # Of a token for some places only, the hub may leave organizations out.
    if namespace not in orgs and token.get("role") != "write":
        return
    if namespace not in orgs or orgs[namespace].get("roleInOrg") in _READ_ONLY:
        places = ", ".join([str(own), *(str(name) for name in orgs if name != namespace)])
        raise HubError(
            f"{repo} cannot be made: the token is {own}'s, who may not make repositories of {namespace}; a name in "
            f"{places} is expected"
        )


def _check_content(api: HfApi, target: HubTarget) -> None:
    """What is there already must be an earlier output of Roundel, or have no weights."""
    found = api.model_info(target.repo)
    if target.private and found.private is False:
        raise HubError(
            f"{target.repo} is there already, and public: a private one cannot be had with --private; make it private "
            "on the hub, leave --private out, or choose another name"
        )
    names = [file.rfilename for file in found.siblings or []]
    weights = [name for name in names if any(fnmatch(name, kind) for kind in _WEIGHTS)]
    if weights and MANIFEST not in names:
        raise HubError(
            f"{target.repo} holds the weights of another model ({weights[0]}), which roundel did not write: choose "
            "another name"
        )


def status(error: BaseException) -> int | None:
    """The number with which a server refuses; None where none answered."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _read_only(repo: str) -> HubError:
    return HubError(
        f"nothing can be uploaded to {repo}: the token may not write there; log in with one that may (hf auth login), "
        "or choose a name in a namespace of yours"
    )


def _unreached(repo: str, error: BaseException) -> HubError:
    return HubError(
        f"nothing can be uploaded to {repo}, since the hub cannot be asked ({kind_and_line(error)}): see to the "
        f"connection, {_LATER}"
    )
