"""What lies beside a model's weights: tokenizer, processors, chat templates, generation settings, licences.

Quantizing changes nothing in them, so they are copied byte for byte: written anew by a library, a tokenizer may lose
what that library does not know (a normalizer, how special tokens take blanks, files that other clients read). Only what
has no file (a GGUF file's tokenizer, one that was changed in memory) is written by its own class, and read back. Code
that they name (`auto_map`) goes with them; it is not run here.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports

from roundel.errors import ModelError
from roundel.formatting import kind_and_line
from roundel.model.place import locate_cached
from roundel.model.source import open_tokenizer

_GENERATION = "generation_config.json"
_TEMPLATES, _OLD_TEMPLATE = "additional_chat_templates", "chat_template.json"
_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "tekken.json"),
    *("vocab.*", "merges.txt", "dict.txt", "*.model", "*.tiktoken", "*.spm", "*.bpe", "*.vocab"),
)
_LICENCES = ("LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*", "USAGE_POLICY*")
_OTHERS = ("*.json", *_LICENCES)
# Written anew, of the weights, of another quantization, of a training, or Roundel's own.
_LEFT = (
    *("config.json", "*.index.json", "adapter_config.json", "trainer_state.json", "*_results.json"),
    *("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json"),
    *("report.json", "roundel*.json"),
)
_GGUF = "gguf_file"
# The key of classes that come as code beside a file.
_CODE = "auto_map"
# Arguments of the call that opened a tokenizer, which transformers takes for settings of it.
_OPENED = ("local_files_only", "is_local", "trust_remote_code", _GGUF, "name_or_path", "_commit_hash")
# Words of several alphabets, blanks and marks; special tokens come in between.
_PROBE = "Once  upon a\ttime,\n\n it's {}Text {} текст {}文字 עברית हिन्दी é e\u0301 😀 0123456789 ...  "


@dataclass(frozen=True)
class Companions:
    """What goes along with the weights.

    Attributes:
        sources: folders of the original, the one with its config first; of a file in several the last is taken.
        tokenizer: None where there is none.
        home: the folder whose files give the tokenizer; None: it is written by its class.
        in_memory: the original is a model in memory, with the generation settings that it has there.
    """

    sources: tuple[Path, ...]
    tokenizer: Any | None
    home: Path | None
    in_memory: bool = False

    @classmethod
    def find(
        cls,
        sources: Iterable[Path],
        tokenizer: Any | None,
        trust_remote_code: bool,
        *,
        in_memory: bool = False,
        untouched: bool = False,
    ) -> "Companions":
        """Decide what will be copied and what written.

        Args:
            sources: as above.
            tokenizer: as above.
            trust_remote_code: as it was opened.
            in_memory: as above.
            untouched: nobody but Roundel has had the tokenizer in hand since it was opened: it is what its files say.

        Raises:
            ModelError: the tokenizer has no files, and what its class writes gives other ids.
        """
        home = None if tokenizer is None else _home(tokenizer, trust_remote_code, untouched)
        return cls(tuple(sources), tokenizer, home, in_memory)

    def write_licences(self, folder: Path) -> None:
        """Put nothing else into the output: everything that a client reads is in it."""
        for source in self.sources:
            for path in _files(source, _LICENCES):
                _copy(path, folder)

    def write(self, folder: Path) -> None:
        """Put them into the output."""
        own = self.tokenizer is not None or self.in_memory
        apart = (*_TOKENIZER, *((_GENERATION,) if self.in_memory else ())) if own else ()
        for source in self.sources:
            for path in _files(source, _OTHERS if own else (*_OTHERS, *_TOKENIZER)):
                if not _matches(path.name, apart):
                    _copy(path, folder)
        if self.home is not None:
            for path in _files(self.home, _TOKENIZER):
                _copy(path, folder)
        elif self.tokenizer is not None:
            old = [path for source in self.sources for path in _files(source, (_OLD_TEMPLATE,))]
            # A template of the processor in the old form would give way to one of the tokenizer in the new form.
            _save(self.tokenizer, folder, **({"save_jinja_files": False} if old else {}))
            for path in old:
                _copy(path, folder)
        for source in (*self.sources, *([self.home] if self.home else [])):
            for template in sorted((source / _TEMPLATES).glob("*.jinja")):
                (folder / _TEMPLATES).mkdir(exist_ok=True)
                shutil.copyfile(template, folder / _TEMPLATES / template.name)


def _home(tokenizer: Any, trust_remote_code: bool, untouched: bool) -> Path | None:
    """The folder whose files give a tokenizer as it is; None where it must be written."""
    place = locate_cached(str(getattr(tokenizer, "name_or_path", "") or ""))
    if place is not None and any(_files(place.folder, _TOKENIZER)):
        if untouched and _GGUF not in getattr(tokenizer, "init_kwargs", {_GGUF: None}):
            return place.folder  # to open a large vocabulary once more takes seconds
        try:
            if _same(tokenizer, open_tokenizer(place.folder, trust_remote_code)):
                return place.folder
        except ModelError:
            pass  # the files have changed since
    with tempfile.TemporaryDirectory() as name:
        try:
            _save(tokenizer, Path(name))
            written = open_tokenizer(name, trust_remote_code)
        except (OSError, ValueError, TypeError, AttributeError, NotImplementedError, ModelError) as error:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} cannot be written and opened again "
                f"({kind_and_line(error)}): one that was opened from a folder is expected"
            ) from error
        difference = "nothing" if written is None else _difference(tokenizer, written)
        if difference:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__}, written and opened again, gives other ids ({difference}): "
                "one that was opened from a folder, and was not changed since, is expected"
            )
    return None


def _save(tokenizer: Any, folder: Path, **options: Any) -> None:
    """Write a tokenizer by its own class, without how it was opened, and under the name that older versions know."""
    tokenizer.save_pretrained(folder, **options)
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    about = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in _OPENED}
    if about.get("tokenizer_class") == "TokenizersBackend":  # as transformers 5 calls the same class
        about["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _same(one: Any, other: Any) -> bool:
    return (
        other is not None
        and not _difference(one, other)
        and getattr(one, "chat_template", None) == getattr(other, "chat_template", None)
        and one.special_tokens_map == other.special_tokens_map
    )


def _difference(one: Any, other: Any) -> str:
    """Where two tokenizers cut a text in different ways; nothing where they do not."""
    tokens = list(one.all_special_tokens)[:8] or [""]
    for text in (_PROBE.format(*(tokens * 3)[:3]), *(f"a{token} b" for token in tokens)):
        for special in (True, False):
            mine, theirs = (t(text, add_special_tokens=special)["input_ids"] for t in (one, other))
            if mine != theirs:
                return f"of {text[:40]!r}"
    return ""


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Those right in a folder that are copied."""
    return [
        path
        for path in sorted(folder.iterdir())
        if _matches(path.name, patterns) and not _matches(path.name, _LEFT) and path.is_file()
    ]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _copy(path: Path, folder: Path) -> None:
    shutil.copyfile(path, folder / path.name)
    for module in set(_code_of(path)):
        _copy_code(path.parent, module, folder)


def _code_of(path: Path) -> Iterator[str]:
    """Modules in which the classes are that a file names."""
    if path.suffix != ".json":
        return
    text = path.read_bytes()
    if _CODE.encode() not in text:
        return  # to parse a large vocabulary takes seconds
    try:
        classes = json.loads(text).get(_CODE) or {}
    except (ValueError, AttributeError):
        return  # opening it reports the error
    for names in classes.values():
        for name in names if isinstance(names, list) else [names]:
            if isinstance(name, str) and "--" not in name:  # else it is in another repository
                yield name.partition(".")[0]


def _copy_code(source: Path, module: str, folder: Path) -> None:
    """A module, and those beside it that it imports."""
    path, target = source / f"{module}.py", folder / f"{module}.py"
    if target.exists() or not path.is_file():
        return
    shutil.copyfile(path, target)
    for name in get_relative_imports(path):
        _copy_code(source, name, folder)
