"""What a reader needs to make the same folder again: a command, and the keys of the recipe that differ from the
method's own defaults, as a YAML file.

Folders on the machine where it was made are left out of the names: they say nothing to others.
"""

import re
from pathlib import PurePath
from shlex import quote
from typing import Any

import yaml

from roundel.calibration.gather import SELF_WRITTEN
from roundel.errors import RecipeError
from roundel.formatting import printable
from roundel.recipe import Recipe

# Keys of a recipe that decide nothing.
_WORDS = ("name", "description")
_ALWAYS = ("method", "bits", "group_size", "sym", "format")
# The folders of a path that says where it begins.
_FOLDERS = re.compile(r"(?<![^\s,:;'\"(])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?!/)(?:[^\s,:;'\"/\\]*[/\\])*")


def without_folders(words: str) -> str:
    """The same words, where paths that say where they begin are file names."""
    return _FOLDERS.sub("", words)


def changed_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that differ from its method's defaults, and those that every reader looks for.

    Args:
        recipe: all of its keys; of another version perhaps, with keys that this one does not know.
    """
    try:
        default = Recipe.create(method=recipe["method"]).model_dump(mode="json")
    except (RecipeError, KeyError):
        default = {}
    shown = {
        key: value
        for key, value in recipe.items()
        if key not in _WORDS and (key not in default or default[key] != value or key in _ALWAYS)
    }
    return dict(sorted(shown.items(), key=lambda item: (item[0] != "method", item[0])))


def recipe_text(recipe: dict[str, Any]) -> str:
    """The changed keys as YAML."""
    shown = changed_keys(recipe)
    if isinstance(shown.get("calibration"), str):
        shown["calibration"] = without_folders(shown["calibration"])
    text: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    return text.rstrip("\n")


def command(manifest: dict[str, Any], folder: str) -> tuple[str, str]:
    """How the folder was made, from its recipe as a file and the original's name, and the language of that.

    Data that the caller gave beside the recipe are known by a description only: `DATA` stands for them.
    """
    origin, data = manifest.get("origin") or {}, manifest.get("calibration")
    beside = data and not manifest["recipe"].get("calibration") and data["source"] != SELF_WRITTEN
    if origin.get("in_memory"):
        given = ", calibration=DATA" if beside else ""
        return f'roundel.quantize(model, "recipe.yaml", output={printable(folder)!r}{given})', "python"
    words = ["roundel", "quantize", original(manifest), "-o", printable(folder), "--recipe", "recipe.yaml"]
    if manifest["original"].get("base"):
        words += ["--base", _name(str(manifest["original"]["base"]), origin)]
    if origin.get("own_code"):
        words.append("--trust-remote-code")
    return " ".join(map(quote, words)) + (" --calibration DATA" if beside else ""), "bash"


def original(manifest: dict[str, Any]) -> str:
    """The original by its id on the hub, with the commit; else by its name, without the folders around it."""
    source, about = str(manifest["source"]), manifest["original"]
    commit = about.get("commit")
    if commit:
        repo, _, revision = source.partition("@")
        return f"{repo}@{commit}" if not revision else source
    origin = manifest.get("origin") or {}
    ids = origin.get("base_model", ())
    if len(ids) == 1 and not about.get("adapter"):
        return str(ids[0])
    return _name(source, origin)


def _name(named: str, origin: dict[str, Any]) -> str:
    """What somebody named, as it is where it is an id of the hub, else without the folders around it."""
    if named.partition("@")[0] in origin.get("base_model", ()):
        return named
    name = printable(PurePath(named).name or named)
    return f"./{name}" if name.startswith(("-", "~")) else name
