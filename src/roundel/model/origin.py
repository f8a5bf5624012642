"""What is known of an original beside its weights, for the card of what is made of it: its place on the hub, its
licence, its languages.

It is read from the metadata of its own card (README.md), from the header of a GGUF file, or seen from a licence file
that goes along. Nothing is guessed: a folder on this machine has no place on the hub because its name looks like one,
and a licence that nobody states is unknown. What cannot be read counts as not stated; it never stops a run.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from huggingface_hub import metadata_load
from yaml import YAMLError

from roundel.errors import ModelError
from roundel.formatting import printable
from roundel.model.classes import auto_class
from roundel.model.hub import is_hub_id
from roundel.model.place import Place, locate_cached
from roundel.model.source import SourceModel
from roundel.system.belongings import CARD

_LICENCE_FILES = ("LICEN[CS]E*", "COPYING*")
_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s?#]+/[^/\s?#]+)/?(?:[?#].*)?")
# What the hub takes for a licence's, a language's or a task's identifier; another licence has a name.
_LICENCE, _LANGUAGE = re.compile(r"[a-z0-9][a-z0-9.+-]*"), re.compile(r"[a-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_TASK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST, _MOST = 200, 40
# Tags about the form of the original's files, which the hub derives anew, or that say how it was quantized.
_OF_FILES = re.compile(
    r"(base_model|license|region|language|dataset|doi|format|library):.*|gguf.*|ggml|gptq.*|awq.*|exl[23]|mlx|onnx|"
    r"safetensors|pytorch|tf|jax|transformers|peft|lora|adapter|quantized|quantization|[0-9.]+-?bits?|fp8|fp4|int[48]|"
    r"w[0-9]+a[0-9]+|bitsandbytes|compressed-tensors|roundel|text-generation|autotrain_compatible|"
    r"endpoints_compatible|text-generation-inference|deploy:.*|eval-results|custom_code|imatrix",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Licence:
    """What is stated of a licence.

    Attributes:
        of: whose it is: a hub id, or the name of a folder or file.
        id: the hub's identifier; empty where none is stated.
        name, link: where it has no identifier of its own.
        file: of the original that holds its text, and goes along; empty where there is none.
        read_in: where it is stated; empty where it is not.
    """

    of: str
    id: str = ""
    name: str = ""
    link: str = ""
    file: str = ""
    read_in: str = ""


@dataclass(frozen=True)
class Origin:
    """What is known of an original.

    Attributes:
        base_model: hub ids of what it is, or is made of.
        relation: of the result to them, in the hub's word; empty where there are none.
        licences: of each model that it is made of.
        language, tags: as its own card says.
        pipeline_tag: the same; empty where it says none.
        auto_class: of transformers, by which it is opened.
        own_code: its classes are modeling code that came with it.
        in_memory: its owner held it there, and may have changed it.
    """

    base_model: tuple[str, ...]
    relation: str
    licences: tuple[Licence, ...]
    language: tuple[str, ...]
    tags: tuple[str, ...]
    pipeline_tag: str
    auto_class: str
    own_code: bool
    in_memory: bool

    def plain(self) -> dict[str, Any]:
        """As plain data, for the manifest: what is read back from JSON is the same."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


def find_origin(source: SourceModel) -> Origin:
    """What is known of an opened model.

    Args:
        source: from a folder, a file, the hub, in memory, or made of an adapter and its base.
    """
    places = _places(source)
    known = [(hub_id(place), _metadata(place)) for place in places]
    base, relation = _base(source, known)
    config = source.model.config
    return Origin(
        base_model=tuple(dict.fromkeys(base)),
        relation=relation,
        licences=tuple(_licence(p, *k) for p, k in zip(places, known, strict=True)),
        language=_words((w for _, about in known for w in _languages(about.get("language"))), _LANGUAGE),
        tags=_words(
            (w for _, about in known for w in _listed(about.get("tags")) if not _OF_FILES.fullmatch(w))
        ),
        pipeline_tag=next(iter(_words((_line(a.get("pipeline_tag")) for _, a in known), _TASK)), ""),
        auto_class=_opened_by(config),
        own_code=type(source.model).__module__.startswith("transformers_modules."),
        in_memory=source.place is None and not source.parents,
    )


def hub_id(place: Place) -> str:
    """The id of a place on the hub; empty where it is not known to be of the hub."""
    if place.commit:
        repo = place.name.partition("@")[0]
        repo = repo.rpartition("/")[0] if place.is_gguf else repo
        return repo if is_hub_id(repo) and not Path(repo).is_dir() else ""
    # A snapshot in the hub's cache, named by its path.
    for part, below in zip(place.path.parts, place.path.parts[1:], strict=False):
        if part.startswith("models--") and below == "snapshots":
            return part.removeprefix("models--").replace("--", "/")
    return ""


def _places(source: SourceModel) -> list[Place]:
    """Where the files of what a model is made of are, as far as they are known; the base of an adapter first."""
    if source.place is not None:
        return [source.place]
    if source.parents:
        names = [source.parents["base"], source.parents["adapter"]]
    else:
        names = [str(getattr(source.model, "name_or_path", "") or "")]
    found = [locate_cached(name) for name in names]
    return [place for place in found if place is not None]


def _base(source: SourceModel, known: list[tuple[str, dict[str, Any]]]) -> tuple[list[str], str]:
    """Hub ids of what a model is made of, and what the result is to them."""
    ids = [repo for repo, _ in known if repo]
    if source.parents:
        # Merged with an adapter that nobody else has, it is another model than its base.
        whole = len(known) == 2 and bool(known[1][0])
        return ids, ("quantized" if whole else "finetune") if ids else ""
    for _, about in known:
        if not ids and about.get("base_model_relation") == "quantized":
            # Another form of the same model, whose place is stated.
            ids = [word for word in _listed(about.get("base_model")) if is_hub_id(word)]
    return ids, "quantized" if ids else ""


def _licence(place: Place, repo: str, about: dict[str, Any]) -> Licence:
    of = repo or place.path.name
    files = () if place.is_gguf else _licence_files(place.folder)
    stated = _listed(about.get("license"))
    name, link = _line(about.get("license_name")), _line(about.get("license_link"))
    if not stated and not name:
        return Licence(of, id="other" if files else "", file=files[0] if files else "")
    if len(stated) == 1 and _LICENCE.fullmatch(stated[0]):
        found = stated[0]
    else:  # several, or words of its own
        found, name = "other", name or ", ".join(stated)
    return Licence(of, found, name, link, files[0] if files else "", about.get("read_in", CARD))


def _licence_files(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted({p.name for kind in _LICENCE_FILES for p in folder.glob(kind) if p.is_file()}))
    except OSError:
        return ()


def _metadata(place: Place) -> dict[str, Any]:
    """What the card of a model says; of a GGUF file, what its header says of itself."""
    if place.gguf is not None:
        # Beside a file on this machine anything may lie.
        beside = _card(place.folder) if place.commit else {}
        header = _header(place)
        return beside | header | ({"read_in": place.gguf.name} if "license" in header else {})
    return _card(place.folder)


def _card(folder: Path) -> dict[str, Any]:
    try:
        found = metadata_load(folder / CARD)
    except (OSError, ValueError, TypeError, YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _header(place: Place) -> dict[str, Any]:
    """The same as a card says, from the header of a GGUF file."""
    try:
        fields = GGUFReader(place.gguf).fields
        said = {k: fields[k].contents() for k in fields if k.startswith("general.")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return {}
    found = {
        "license": said.get("general.license"),
        "license_name": said.get("general.license.name"),
        "license_link": said.get("general.license.link"),
        "language": said.get("general.languages"),
        "tags": said.get("general.tags"),
    }
    for key in ("general.source.repo_url", "general.source.huggingface.repository", "general.repo_url"):
        address = _line(said.get(key))
        match = _HUB.fullmatch(address)
        repo = match[1] if match else address
        if "/" in repo and is_hub_id(repo):
            found |= {"base_model": repo, "base_model_relation": "quantized"}
            break
    return {key: value for key, value in found.items() if value}


def _opened_by(config: Any) -> str:
    try:
        return str(auto_class(config).__name__)
    except (ModelError, AttributeError):
        return "AutoModelForCausalLM"


def _words(found: Iterable[str], pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
    """Each once, without what does not look like one."""
    kept = [word for word in dict.fromkeys(found) if word and (pattern is None or pattern.fullmatch(word))]
    return tuple(kept[:_MOST])


def _listed(value: Any) -> list[str]:
    """A text or a list of texts, as a list."""
    values = value if isinstance(value, list | tuple) else [value]
    return [word for word in map(_line, values) if word]


def _languages(value: Any) -> list[str]:
    """The same of languages: of Norwegian's `no`, YAML makes a truth value."""
    values = value if isinstance(value, list | tuple) else [value]
    return _listed(["no" if one is False else one for one in values])


def _line(value: Any) -> str:
    """A text as one line; empty for what is none."""
    return " ".join(printable(value).split())[:_LONGEST] if isinstance(value, str) else ""
