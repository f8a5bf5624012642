"""The files of a processor: how pictures, sound and chats become what a model reads.

They are settings, no weights: quantizing changes nothing in them, so they are copied as they are, beside the tokenizer,
which is written by its own class. Code of their own that they name (`auto_map`) goes with them; it is not run here.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import (
    AUDIO_TOKENIZER_NAME,
    CHAT_TEMPLATE_DIR,
    CHAT_TEMPLATE_FILE,
    FEATURE_EXTRACTOR_NAME,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    cached_file,
)

# The extractor's file is the image processor's too.
_FILES = (
    PROCESSOR_NAME,
    FEATURE_EXTRACTOR_NAME,
    VIDEO_PROCESSOR_NAME,
    AUDIO_TOKENIZER_NAME,
    CHAT_TEMPLATE_FILE,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
)


def write_readers(folder: Path, tokenizer: Any | None, location: str | None) -> None:
    """Write a model's tokenizer, and copy the files of its processor.

    Args:
        folder: the output.
        tokenizer: the model's, if it has one.
        location: the folder or hub id of the original, if it has one.
    """
    found = {} if location is None else {name: path for name in _FILES if (path := _find(location, name))}
    if tokenizer is not None:
        # A template of the processor in the old form would give way to one of the tokenizer in the new form.
        old = LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE in found and CHAT_TEMPLATE_FILE not in found
        tokenizer.save_pretrained(folder, **({"save_jinja_files": False} if old else {}))
    for name, path in found.items():
        shutil.copyfile(path, folder / name)
    if location is None:
        return
    for name in {name for path in found.values() for name in _code_of(path)}:
        _copy_code(location, name, folder)
    for template in sorted((Path(location) / CHAT_TEMPLATE_DIR).glob("*.jinja")):
        (folder / CHAT_TEMPLATE_DIR).mkdir(exist_ok=True)
        shutil.copyfile(template, folder / CHAT_TEMPLATE_DIR / template.name)


def _find(location: str, name: str) -> Path | None:
    """A file of a folder, of the hub, or, offline, of the hub's cache."""
    if Path(location).is_dir():
        path = Path(location) / name
        return path if path.is_file() else None
    cached = cached_file(
        location,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if cached is None else Path(cached)


def _code_of(path: Path) -> Iterator[str]:
    """Modules in which the classes are that a file names."""
    if path.suffix != ".json":
        return
    try:
        classes = json.loads(path.read_text(encoding="utf-8")).get("auto_map") or {}
    except (ValueError, AttributeError):
        return  # whoever opens it will say so
    for names in classes.values():
        for name in names if isinstance(names, list) else [names]:
            if isinstance(name, str) and "--" not in name:  # else it is in another repository
                yield name.partition(".")[0]


def _copy_code(location: str, module: str, folder: Path) -> None:
    """A module, and those beside it that it imports."""
    target = folder / f"{module}.py"
    path = None if target.exists() else _find(location, target.name)
    if path is None:
        return
    shutil.copyfile(path, target)
    for name in get_relative_imports(path):
        _copy_code(location, name, folder)
