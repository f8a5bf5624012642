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


def command(manifest: dict[str, Any], folder: str) -> str:
    """How the folder was made, from its recipe as a file and the original's name.

    Data that the caller gave beside the recipe are known by a description only: `DATA` stands for them.
    """
    data = manifest.get("calibration")
    beside = data and not manifest["recipe"].get("calibration") and data["source"] != SELF_WRITTEN
    line = f"roundel quantize {quote(original(manifest))} -o {quote(printable(folder))} --recipe recipe.yaml"
    return line + (" --calibration DATA" if beside else "")


def original(manifest: dict[str, Any]) -> str:
    """The original by its id on the hub, with the commit; else by its name, without the folders around it."""
    source, about = str(manifest["source"]), manifest["original"]
    commit = about.get("commit")
    if commit:
        repo, _, revision = source.partition("@")
        return f"{repo}@{commit}" if not revision else source
    ids = (manifest.get("origin") or {}).get("base_model", ())
    if source.partition("@")[0] in ids:
        return source
    if len(ids) == 1 and not about.get("adapter"):
        return str(ids[0])
    return printable(PurePath(source).name or source)
