"""lm-eval's own task objects, with local documents where a folder of them is given.

Local documents enter by lm-eval's seam for them, `custom_dataset` in a task's configuration; everything else of the
configuration stays lm-eval's, so that prompts, targets, few-shot documents, filters and metrics are too. Groups are
built by lm-eval from the same index of tasks, in which entries with local documents stand for as long as that takes.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from roundel.errors import CalibrationError, RoundelError
from roundel.evaluation.tasks.local_data import LocalData, read_local
from roundel.evaluation.tasks.suites import FOLDERS
from roundel.formatting import first_line, kind_and_line

_SPLITS = ("training_split", "validation_split", "test_split")


@dataclasses.dataclass(frozen=True)
class LoadedTasks:
    """What one name stands for.

    Attributes:
        name: of a task, group or tag.
        content: as lm-eval's TaskManager gives it: `tasks`, `groups`, `group_map`.
        sources: where the documents of each task come from, in words.
    """

    name: str
    content: dict[str, Any]
    sources: dict[str, str]


def task_manager(names: Sequence[str]) -> Any:
    """An index of lm-eval's tasks that holds some names, if lm-eval has them at all.

    All of it is fourteen thousand files, which takes many seconds to read; the suites are in a few folders of them.

    Raises:
        RoundelError: lm-eval is not installed.
    """
    few = _manager(everything=False)
    # A tag gathers tasks from every folder.
    there = all(name in few.task_index and few.task_index[name].kind.name != "TAG" for name in names)
    return few if there else _manager(everything=True)


@lru_cache(maxsize=2)
def _manager(everything: bool) -> Any:
    try:
        import lm_eval.tasks
        from lm_eval.models import huggingface  # noqa: F401
    except ImportError as error:
        raise RoundelError(f"tasks need lm-eval ({error}): pip install 'roundel[eval]'") from error
    from roundel.evaluation.tasks.quiet import quiet

    with quiet():
        if everything:
            return lm_eval.tasks.TaskManager()
        home = Path(lm_eval.tasks.__file__).parent
        folders = [home / folder for folder in FOLDERS]
        return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)


def load_tasks(name: str, data_dir: Path | None, fewshot: int | None) -> LoadedTasks:
    """The tasks of one of lm-eval's names, ready to run.

    Args:
        name: task, group or tag that lm-eval has.
        data_dir: folder with local copies of data sets; None: the hub's.
        fewshot: examples before each document; None: each task's own number, 5 for MMLU.

    Raises:
        CalibrationError: documents cannot be had.
        RoundelError: lm-eval cannot build the task.
    """
    manager = task_manager([name])
    local = {} if data_dir is None else _local_tasks(name, manager.task_index, data_dir)
    with _replaced(manager.task_index, {task: entry for task, (entry, _) in local.items()}):
        content = _load(manager, name, data_dir is not None)
    for task in content["tasks"].values():
        _set_fewshot(task, fewshot)
    sources = {task: _source(made, local.get(task)) for task, made in content["tasks"].items()}
    return LoadedTasks(name, content, sources)


def _load(manager: Any, name: str, local: bool) -> dict[str, Any]:
    try:
        return dict(manager.load([name]))
    except ImportError as error:
        raise RoundelError(f"the task {name} needs a package that is not installed: {error}") from error
    except Exception as error:  # the hub's clients and a task's own code have no family of errors in common
        found = kind_and_line(error)
        if local:
            raise CalibrationError(
                f"lm-eval cannot build the task {name} of the local documents ({found}): the columns of the hub's data "
                "set are expected"
            ) from error
        raise CalibrationError(
            f"the documents of {name} cannot be loaded from the hub ({found}): reach the hub, or give a folder with "
            "local copies with --data-dir"
        ) from error


def _local_tasks(name: str, index: Any, folder: Path) -> dict[str, tuple[Any, LocalData]]:
    """Index entries with local documents, and these, of each task that a name stands for."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found: dict[str, tuple[Any, LocalData]] = {}
    for task in _leaves(name, index):
        entry = index[task]
        config = load_yaml(entry.yaml_path, resolve_func=True)
        if "dataset_path" not in config or "class" in config or config.get("custom_dataset"):
            raise CalibrationError(
                f"{task} makes its documents by code of its own: run it without --data-dir, or leave it out"
            )
        data = read_local(task, config, folder)
        config |= {key: None for key in _SPLITS if config.get(key) not in (None, *data.splits)}
        config["custom_dataset"] = _dataset(task, data)
        config.pop("dataset_kwargs", None)
        found[task] = dataclasses.replace(entry, yaml_path=None, cfg=config), data
    return found


def _dataset(task: str, data: LocalData) -> Any:
    import datasets

    try:
        made = {split: datasets.Dataset.from_list(rows) for split, rows in data.splits.items()}
    except (ValueError, TypeError) as error:
        raise CalibrationError(
            f"the documents of {task} ({', '.join(data.files.values())}) are not all alike: {first_line(error)}"
        ) from error

    def custom_dataset(**metadata: Any) -> Any:
        return datasets.DatasetDict(made)

    return custom_dataset


def _leaves(name: str, index: Any) -> Iterator[str]:
    """The tasks below a name."""
    entry = index[name]
    kind = entry.kind.name
    if kind == "TAG":
        yield from sorted(entry.tags)
    elif kind == "GROUP":
        for member in entry.cfg["task"]:
            if not isinstance(member, str):
                raise CalibrationError(
                    f"the group {name} changes tasks by settings of its own: local documents are taken for plain "
                    "groups, name its tasks instead"
                )
            yield from _leaves(member, index)
    else:
        yield name


@contextmanager
def _replaced(index: dict[str, Any], entries: dict[str, Any]) -> Iterator[None]:
    before = {task: index[task] for task in entries}
    index.update(entries)
    try:
        yield
    finally:
        index.update(before)


def _set_fewshot(task: Any, fewshot: int | None) -> None:
    """As lm-eval's command does it, where a task that says 0 itself keeps it; MMLU's five are its paper's."""
    from roundel.evaluation.tasks.quiet import OTHER_SEED

    own = task.get_config("num_fewshot")
    if own is None and fewshot is None:
        fewshot = 5 if task.get_config("dataset_path") == "cais/mmlu" else 0
    if own != 0 and fewshot is not None:
        task.set_config(key="num_fewshot", value=fewshot)
    task.set_fewshot_seed(seed=OTHER_SEED)


def _source(task: Any, local: tuple[Any, LocalData] | None) -> str:
    shots = task.get_config("num_fewshot")
    if local is None:
        parts = [task.get_config("dataset_path"), task.get_config("dataset_name")]
        return " ".join(str(part) for part in parts if part)
    _, data = local
    evaluated = task.config.test_split or task.config.validation_split
    words = data.files[evaluated]
    if shots:
        split = _fewshot_split(task)
        if split == evaluated:
            raise CalibrationError(
                f"{shots} examples before each document of {task.config.task} are expected, and only the documents "
                f"that are evaluated are there ({words}): a split for examples beside them is expected, or 0 examples"
            )
        if split is not None and split not in data.files:
            raise CalibrationError(
                f"the examples of {task.config.task} come from the split {split}, which is not beside {words}"
            )
        words += f", examples from {data.files[split]}" if split else ""
    return f"{words} ({data.remark})" if data.remark else words


def _fewshot_split(task: Any) -> str | None:
    """The split that lm-eval draws examples from; None where the task holds them itself."""
    if task.fewshot_cfg.split is not None:
        return str(task.fewshot_cfg.split)
    if task.fewshot_cfg.samples is not None:
        return None
    config = task.config
    return str(config.training_split or config.validation_split or config.test_split)
