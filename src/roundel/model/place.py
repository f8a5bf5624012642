"""Where the files of a named model are: a folder, a GGUF file, or the hub's cache.

A hub id is a folder that has not been looked up yet. It is looked up here, once, and goes the way of folders from then
on.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from roundel.errors import ModelError
from roundel.model.hub import cached_model, fetch_file, fetch_model, is_hub_id
from roundel.system.files import unfit_name
from roundel.system.progress import Progress

_GGUF = ".gguf"
_WANTED = "a model folder, a .gguf file or a hub id is expected"


@dataclass(frozen=True)
class Place:
    """A model on this machine.

    Attributes:
        name: as it was named, for people; of one of the hub id and, if it was named, revision.
        path: its folder, or its GGUF file.
        commit: of one of the hub: of what its files are; else empty.
    """

    name: str
    path: Path
    commit: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        """In which the files are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def gguf(self) -> Path | None:
        """The one GGUF file that holds all of it; None: it is a folder of other files."""
        if not self.path.is_dir():
            return self.path if self.path.suffix == _GGUF and self.path.is_file() else None
        if (self.path / "config.json").exists():
            return None
        found = sorted(self.path.glob(f"*{_GGUF}"))
        return found[0] if len(found) == 1 else None

    @property
    def is_gguf(self) -> bool:
        """A single file, alone or in a folder of its own."""
        return self.gguf is not None


def locate(
    model: "str | Path | Place",
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Place:
    """Find a model's files, and bring those of a hub id into the hub's cache.

    Args:
        model: folder, .gguf file, or hub id: `org/name`, `org/name@revision`, `org/name/file.gguf`.
        revision: branch, tag or commit of a hub id; None: the main branch.
        allow_pickle: pickled weights are taken where there are no safetensors.
        progress: gets what is fetched, in words.

    Raises:
        ModelError: there is nothing of that name, or the hub does not give it.
    """
    if isinstance(model, Place):
        return model
    _check_name(model)
    name = str(model)
    path = Path(name).expanduser()
    if not name.strip():
        raise ModelError(f"the model's name is empty: {_WANTED}")
    unfit = unfit_name(Path(name))
    if unfit:
        raise ModelError(
            f"{name} cannot be opened ({unfit}): rename it, or give it by a link of another name"
        )
    if path.exists():
        if revision is not None:
            raise ModelError(
                f"{name} is on this machine, where there is no revision {revision}: leave --revision out"
            )
        if not path.is_dir() and path.suffix != _GGUF:
            raise ModelError(f"{name} is a file: {_WANTED}")
        return Place(name, path)
    repo, _, at = name.partition("@")
    if at and revision is not None:
        raise ModelError(
            f"{name} names the revision {at}, and --revision {revision}: one of them is expected"
        )
    revision = at or revision
    shown = name if at or revision is None else f"{name}@{revision}"
    owner, _, file = repo.rpartition("/")
    if file.endswith(_GGUF) and owner.count("/") == 1 and is_hub_id(owner):
        return Place(shown, *fetch_file(owner, file, revision))
    if repo.endswith(_GGUF):
        raise ModelError(f"no file {name}: the path of a GGUF file is expected")
    if not is_hub_id(repo):
        raise ModelError(f"no folder {name}: {_WANTED}")
    return Place(
        shown, *fetch_model(repo, revision, allow_pickle=allow_pickle, progress=progress or Progress())
    )


def _check_name(model: object) -> None:
    if isinstance(model, str | PathLike):
        return
    kind = type(model).__name__
    if isinstance(model, bytes):
        raise ModelError(f"{model!r} is {kind}: the path as text is expected; use os.fsdecode(path)")
    # Pipelines and trainers have one.
    inside = type(getattr(model, "model", None))
    if callable(getattr(inside, "named_parameters", None)):
        raise ModelError(f"{kind} is no model, and holds one ({inside.__name__}): pass its .model")
    raise ModelError(f"{kind} is no model: {_WANTED}, or a model in memory")


def locate_cached(name: str) -> Place | None:
    """A folder, or what the hub's cache holds of a hub id, without asking the hub; None where there is neither."""
    if not name.strip():
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        return Place(name, path)
    repo, _, revision = name.partition("@")
    found = cached_model(repo, revision or None) if is_hub_id(repo) else None
    return None if found is None else Place(name, found, found.name)
