"""The journal: what a run has finished, on the disk, so that the same command goes on where it was ended.

A work folder beside the output, `.NAME.roundel`:

    roundel-work          says that the folder is Roundel's; one without it is the user's, and left alone
    sealed                all is written; the output appears now, or has appeared
    lock                  held by the process that works here
    run.json              what decides the result: recipe, fingerprints of model and calibration, types, versions
    piece-00007.safetensors   a finished block: its integers, its other tensors, what is to be reported about it
    original-00008.bin, quantized-00008.bin   what enters the block that comes next
    tuning-00008.safetensors  parameters and optimizer inside a block that takes long
    text.safetensors      calibration tokens that the model wrote itself
    converted/            tensors of the source that transformers makes from several of its own (rank 1: converted-1/)
    building/             the output, while it is written (formats/folder.py)

Every file is written aside, flushed and renamed, in this order: streams, then the piece that makes them count. So
whenever the process ends, the folder says what is finished, and nothing of it is half. What follows is computed from
the same numbers as without an interruption, so the result has the same bytes. What is removed is what has one of these
names: a file of another name is the user's, and stays.

Of several ranks, which all must see the folder, the first holds the lock and writes what all have done together; a rank
that has quantized a block of its own writes that piece. Another number of ranks may go on with what some have begun:
the same minibatches, the same decisions, but sums in another order, so the last bits may differ.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file

from roundel.errors import ModelError, OutputError
from roundel.formats.content import Piece
from roundel.formats.folder import settle, unsettled
from roundel.formats.integers import check_read_back, read_integers, read_note, write_integers
from roundel.system.files import reported, write_durably
from roundel.system.ranks import ALONE, Ranks

_IDENTITY = "run.json"
_SEAL = "sealed"
_CONVERTED = "converted"
_LOCK = "lock"
_MARK = "roundel-work"
_MARK_TEXT = "Roundel keeps here what an unfinished run has done; the same command goes on with it.\n"
_TEXT = "text.safetensors"
_CHOICE = "choice.json"
_FILES = (_IDENTITY, _SEAL, _TEXT, _CHOICE, "piece-*.safetensors", "tuning-*.safetensors", "*.bin", ".*.part")
_FOLDERS = (_CONVERTED, f"{_CONVERTED}-*", "building", "reading-*")
_VERSION = 1


class Journal:
    """The work folder of one run. A context: the lock is held inside.

    Args:
        target: the output folder.
        ranks: the processes of the run.
    """

    def __init__(self, target: Path, ranks: Ranks = ALONE) -> None:
        self.folder = work_folder(target)
        self.target, self.ranks = target, ranks
        self._lock = FileLock(self.folder / _LOCK)

    def __enter__(self) -> Self:
        with self.ranks.raise_together():
            if self.ranks.first:
                self._acquire()
        return self

    def _acquire(self) -> None:
        with reported(self.folder):
            self._claim()
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise OutputError(
                    f"another run is writing {self.target}: wait for it, or choose another folder"
                ) from error

    def _claim(self) -> None:
        """Make the folder and mark it, or find it marked."""
        folder = self.folder
        if not folder.is_symlink():
            folder.mkdir(exist_ok=True)
            found = sorted(path.name for path in folder.iterdir() if path.name != _LOCK)
            if not found:
                (folder / _MARK).write_text(_MARK_TEXT, encoding="utf-8")
            if not found or _MARK in found:
                return
        what = f"a link to {folder.readlink()}" if folder.is_symlink() else f"a folder with {found[0]} in it"
        raise OutputError(
            f"{folder}, where the work on {self.target} goes, is {what}, which roundel did not make: move it away, or "
            "choose another output folder"
        )

    def __exit__(self, *exception: object) -> None:
        if not self.ranks.first:
            return
        self._lock.release()
        if not self._begun and not self._text.is_file():
            self.remove()  # nothing here is worth going on with

    def begin(self, identity: dict[str, Any], restart: bool) -> None:
        """Go on with what is here, or begin.

        Args:
            identity: everything that decides the result, as plain data.
            restart: forget what is here.

        Raises:
            OutputError: what is here belongs to another run; the message says where they differ.
        """
        path = self.folder / _IDENTITY
        (self.folder / _SEAL).unlink(missing_ok=True)
        identity = json.loads(json.dumps({"version": _VERSION, **identity}))
        if restart or not path.is_file() or not self._begun:
            self.clear()
            self._identify(identity)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be read ({error}): pass --restart to begin again") from error
        moved = found.get("ranks") != identity.get("ranks")
        if moved:
            # Another number of processes, each with its own share of the cores, is no other run.
            found |= {key: identity.get(key) for key in ("ranks", "threads")}
        differences = list(_differences(found, identity))
        if differences:
            raise OutputError(
                f"{self.folder} holds an unfinished run of something else: {'; '.join(differences)}. Repeat its "
                "command to go on with it, or pass --restart to begin again"
            )
        if moved:
            self._identify(identity)

    def _identify(self, identity: dict[str, Any]) -> None:
        text = json.dumps(identity, indent=1, ensure_ascii=False)
        path = self.folder / _IDENTITY
        write_durably(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    @property
    def begun_here(self) -> bool:
        """Whether this rank sees what the first one has begun."""
        return (self.folder / _IDENTITY).is_file()

    @property
    def _begun(self) -> bool:
        return any(self.folder.glob("piece-*.safetensors")) or any(self.folder.glob("tuning-*"))

    @property
    def finished(self) -> int:
        """How many pieces are finished, in order."""
        count = 0
        while self._piece(count).is_file():
            count += 1
        return count

    def commit(self, number: int, model: Any, piece: Piece, note: dict[str, Any]) -> None:
        """A piece is finished: its tensors, and what is to be reported, come to the disk, and are read back.

        Raises:
            OutputError: disk full.
            FormatError: what is read back is something else.
        """

        def write(part: Path) -> None:
            write_integers(part, model, piece.weights, piece.others, note)
            found = read_integers(part)
            for name, weight in piece.weights.items():
                check_read_back(name, found.weights.get(name), weight)

        write_durably(self._piece(number), write)

    def note(self, number: int) -> dict[str, Any]:
        """What was committed with a piece.

        Raises:
            OutputError: it is damaged.
        """
        with self._damage_reported():
            note: dict[str, Any] = read_note(self._piece(number))
            return note

    def piece(self, number: int) -> Piece:
        """A finished piece.

        Raises:
            OutputError: it is damaged.
        """
        with self._damage_reported():
            stored = read_integers(self._piece(number))
            return Piece(stored.weights, stored.others)

    def pieces(self) -> Iterator[Piece]:
        """All finished pieces in turn."""
        for number in range(self.finished):
            yield self.piece(number)

    def has(self, number: int) -> bool:
        """Whether a piece is finished, be those before it or not."""
        return self._piece(number).is_file()

    def discard_pieces(self, first: int) -> None:
        """Forget pieces from `first` on, which several ranks finished before those that come first."""
        for path in self.folder.glob("piece-*.safetensors"):
            if path.name >= self._piece(first).name:
                path.unlink()

    def discard_snapshots(self, number: int) -> None:
        """The block whose tuning they hold is finished."""
        for path in self.folder.glob(f"tuning-{number:05d}*"):
            path.unlink()

    def save_text(self, key: dict[str, Any], tokens: torch.Tensor) -> None:
        """Calibration tokens that took long to make; `key` decides them."""
        about = {"key": json.dumps(key, sort_keys=True)}
        write_durably(self._text, lambda part: save_file({"tokens": tokens}, part, about))

    def text(self, key: dict[str, Any]) -> torch.Tensor | None:
        """The tokens of an earlier run with the same key."""
        if not self._text.is_file():
            return None
        with safe_open(self._text, "pt") as file:
            if (file.metadata() or {}).get("key") != json.dumps(key, sort_keys=True):
                return None
            tokens: torch.Tensor = file.get_tensor("tokens")
            return tokens

    def save_choice(self, key: dict[str, Any], chosen: dict[str, Any]) -> None:
        """Settings that were chosen by measuring; `key` is what was asked for."""
        text = json.dumps({"key": key, "chosen": chosen}, sort_keys=True)
        write_durably(self.folder / _CHOICE, lambda part: part.write_text(text, encoding="utf-8"))

    def choice(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The settings of an earlier run with the same key: measured again they would be others."""
        path = self.folder / _CHOICE
        if not path.is_file():
            return None
        with suppress(ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("key") == json.loads(json.dumps(key)):
                chosen: dict[str, Any] = found["chosen"]
                return chosen
        return None

    @property
    def _text(self) -> Path:
        return self.folder / _TEXT

    @property
    def converted(self) -> Path:
        """A folder for tensors of the source in another form, made anew whenever the source is opened."""
        return self.folder / (_CONVERTED if self.ranks.first else f"{_CONVERTED}-{self.ranks.number}")

    def clear(self) -> None:
        """Forget what was finished."""
        with reported(self.folder):
            self._remove(but=(_TEXT, _CHOICE, _CONVERTED, f"{_CONVERTED}-*"))

    def _remove(self, but: tuple[str, ...] = ()) -> None:
        """Everything of a run's, by name."""
        for path in self.folder.iterdir():
            if path.is_symlink() or _named(path, but):
                continue
            if path.is_dir() and _named(path, _FOLDERS):
                shutil.rmtree(path)
            elif path.is_file() and _named(path, _FILES):
                path.unlink()

    def seal(self) -> None:
        """Nothing is left to do but to let the output appear."""
        write_durably(self.folder / _SEAL, lambda part: part.touch())

    def remove(self) -> None:
        """The run is over: the folder is removed, unless it holds files of the user's."""
        if not self.ranks.first:
            return
        if unsettled(self.folder):
            return
        with suppress(OSError):
            self._remove()
            if {path.name for path in self.folder.iterdir()} <= {_MARK, _LOCK}:
                (self.folder / _MARK).unlink(missing_ok=True)
                (self.folder / _LOCK).unlink(missing_ok=True)
                self.folder.rmdir()

    @contextmanager
    def _damage_reported(self) -> Iterator[None]:
        try:
            yield
        except ModelError as error:
            raise OutputError(f"{error}; pass --restart to begin again") from error

    def _piece(self, number: int) -> Path:
        return self.folder / f"piece-{number:05d}.safetensors"


def remove_stale(target: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """See to the work folder of a run that was killed when its output had appeared already, or was about to."""
    folder = work_folder(target)
    try:
        if not (folder / _MARK).is_file():
            return
    except OSError:
        return  # a name that cannot be; who checks the target says so
    if unsettled(folder):
        with Journal(target), reported(target):
            said = settle(target, folder)
            if said:
                say(said)
    if (folder / _SEAL).is_file() and target.is_dir() and not (folder / "building").exists():
        with Journal(target) as journal:
            journal.remove()


def work_folder(target: Path) -> Path:
    """Where the journal of an output folder is."""
    return target.parent / f".{target.name}.roundel"


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Where two trees of plain data differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            below = f"{name}.{key}" if name else key
            yield from _differences(found.get(key), wanted.get(key), below)
    elif found != wanted:
        yield f"{name} was {json.dumps(found)} and is {json.dumps(wanted)} now"


def _named(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)
