"""Recipes as text: the shipped ones, YAML files, and `key=value` on a command line."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from roundel.errors import RecipeError


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in _shipped().iterdir() if p.name.endswith(".yaml"))


def load_settings(name_or_file: str | Path) -> dict[str, Any]:
    """The keys of a shipped recipe or of a YAML file, not yet validated; `name` is filled in."""
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        name, text = path.stem, _read(path)
    else:
        name = str(name_or_file)
        if name not in recipe_names():
            raise RecipeError(
                f"no recipe {name!r}: a YAML file or one of {', '.join(recipe_names())} is expected"
            )
        text = (_shipped() / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        settings = _load_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(
            f"{name_or_file} is no valid YAML ({_one_line(error)}): lines of `key: value` are expected"
        ) from error
    if not isinstance(settings, dict):
        found = "nothing" if settings is None else type(settings).__name__
        raise RecipeError(
            f"{name_or_file} holds {found}: a mapping of recipe keys, lines of `key: value`, is expected"
        )
    strange = [key for key in settings if not isinstance(key, str)]
    if strange:
        raise RecipeError(f"{name_or_file} has the key {strange[0]!r}: names of recipe keys are expected")
    return {"name": name, **settings}


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice: YAML's own rule, which PyYAML does not keep."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, from a node whose keys all differ."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _one_line(error: Exception) -> str:
    """What YAML says, without the picture of the place."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem is None or mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`key=value` strings, values in YAML, as a mapping.

    Raises:
        RecipeError: no `=`, a key twice, or a value that is no YAML.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {assignment!r}: key=value is expected, for example --set iters=200")
        if key.strip() in settings:
            raise RecipeError(f"--set gives {key.strip()} twice: one value is expected")
        try:
            settings[key.strip()] = _load_yaml(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise RecipeError(
                f"--set {assignment!r}: the value is no YAML ({_one_line(error)}); a number, a word or a list "
                "is expected"
            ) from error
    return settings


def _shipped() -> Any:
    return resources.files("roundel") / "recipes"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the recipe {path} cannot be read: {error}; a YAML file in UTF-8 is expected"
        ) from error
