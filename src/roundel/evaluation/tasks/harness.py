"""Tasks on a model in memory, measured by the real lm-eval.

    names -> suites.py -> lm-eval's task objects (loading.py) -> lm_eval.evaluate with its HFLM (lm.py) -> TaskResult

Whatever is attached to the model, quantized activations or a quantized KV cache, is at work: lm-eval calls the model.
Every name is run by itself with lm-eval's seeds, so a figure does not depend on what else was asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roundel.errors import RecipeError, RoundelError
from roundel.evaluation.tasks.loading import LoadedTasks, load_tasks, task_manager
from roundel.evaluation.tasks.results import TaskResult
from roundel.evaluation.tasks.suites import expand, tasks_of
from roundel.formatting import kind_and_line
from roundel.system.progress import Progress

_PREFERRED = ("acc_norm", "acc")


def run_tasks(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 1,
    progress: Progress = Progress(),
) -> list[TaskResult]:
    """Measure a model on tasks.

    Args:
        model: a transformers causal language model; what is attached to it acts.
        tokenizer: its own.
        names: suites, and tasks, groups and tags of lm-eval.
        data_dir: folder with local copies of data sets; None: the hub's.
        limit: the first documents of each task (of each subject of MMLU); None: all.
        fewshot: examples before each document, except where a task fixes none; None: each task's own number,
            5 for MMLU.
        batch_size: requests in one pass; other sizes may change the last digits.
        progress: gets the requests of each name.

    Returns:
        A result per task, in the order of the names; a group's own before those of its parts.

    Raises:
        RecipeError: an unknown name, or a number out of range.
        CalibrationError: documents that are absent or damaged.
        ModelError: an answer is longer than the model's positions.
        RoundelError: lm-eval is not installed, or cannot run a task.
        Stopped: the work was asked to end.
    """
    for word, value, least in (("limit", limit, 1), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise RecipeError(f"{word} {value}: at least {least} is expected")
    if tokenizer is None:
        raise RoundelError("tasks need the model's tokenizer, and there is none: give it with the model")
    loaded = find_tasks(names, data_dir, fewshot)

    from roundel.evaluation.tasks.lm import WatchedLM, untouched
    from roundel.evaluation.tasks.quiet import quiet

    results: dict[str, TaskResult] = {}
    with untouched(model):
        with quiet():
            lm = WatchedLM(model, tokenizer, batch_size, progress)
        with quiet(lm.answered), progress.stage("Tasks", len(loaded)):
            for one in loaded:
                for result in _run(lm, one, limit):
                    results.setdefault(result.task, result)
                progress.advance(note=one.name)
    return list(results.values())


def find_tasks(names: Sequence[str], data_dir: Path | None, fewshot: int | None) -> list[LoadedTasks]:
    """Tasks with their documents, as `run_tasks` takes them: by calling it first, hours of other work can be saved.

    Raises:
        RecipeError: an unknown name, or a number out of range.
        CalibrationError: documents that are absent or damaged.
        RoundelError: lm-eval is not installed.
    """
    if fewshot is not None and fewshot < 0:
        raise RecipeError(f"fewshot {fewshot}: at least 0 is expected")
    tasks = expand(names, task_manager(tasks_of(names)).task_index)

    from roundel.evaluation.tasks.quiet import quiet, seeded

    with quiet(), seeded():
        return [load_tasks(task, data_dir, fewshot) for task in tasks]


def _run(lm: Any, loaded: LoadedTasks, limit: int | None) -> list[TaskResult]:
    from lm_eval.evaluator import evaluate

    from roundel.evaluation.tasks.quiet import seeded

    lm.start(loaded.name)
    try:
        with seeded():
            found = evaluate(lm, loaded.content, limit=limit)
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise RoundelError(
            f"lm-eval cannot run {loaded.name} ({kind_and_line(error)}): another task, or other "
            "documents, are expected"
        ) from error
    for task in loaded.content["tasks"]:
        if cut := _cut(lm, [task]):
            lm.progress.say(f"{task}: {cut}")
    parents = {child: group for group, children in loaded.content["group_map"].items() for child in children}
    groups = [group for group in loaded.content["groups"] if _metrics(found["results"][group])]
    return [
        *(_group_result(lm, found, loaded, group, parents.get(group, "")) for group in groups),
        *(_task_result(lm, found, loaded, task, parents.get(task, "")) for task in loaded.content["tasks"]),
    ]


def _task_result(lm: Any, found: Any, loaded: LoadedTasks, task: str, parent: str) -> TaskResult:
    metrics = _metrics(found["results"][task])
    main = _main(metrics, found["higher_is_better"].get(task, {}))
    ids, correct = _per_document(found, task, main)
    counts = found["n-samples"][task]
    first = f"the first {counts['effective']} of {counts['original']} documents"
    notes = [first if counts["effective"] < counts["original"] else "", _cut(lm, [task])]
    return TaskResult(
        task,
        main,
        *metrics[main],
        documents=counts["effective"],
        fewshot=int(found["n-shot"][task]),
        version=str(found["versions"][task]),
        metrics=metrics,
        correct=correct,
        ids=ids,
        source=loaded.sources[task],
        note="; ".join(note for note in notes if note),
        part_of=parent,
    )


def _group_result(lm: Any, found: Any, loaded: LoadedTasks, group: str, parent: str) -> TaskResult:
    metrics = _metrics(found["results"][group])
    main = _main(metrics, found["higher_is_better"].get(group, {}))
    tasks = [task.config.task for task in loaded.content["groups"][group].get_all_tasks()]
    parts = [_per_document(found, task, main) for task in tasks]
    counts = [found["n-samples"][task] for task in tasks]
    effective, original = (sum(count[key] for count in counts) for key in ("effective", "original"))
    first = f"the first documents of each of {len(tasks)} tasks, {effective} of {original}"
    notes = [first if effective < original else "", _cut(lm, tasks)]
    shots = {int(found["n-shot"][task]) for task in tasks}
    sources = list(dict.fromkeys(loaded.sources[task] for task in tasks))
    return TaskResult(
        group,
        main,
        *metrics[main],
        documents=effective,
        fewshot=shots.pop() if len(shots) == 1 else None,
        version=str(found["versions"][group]),
        metrics=metrics,
        correct=[value for _, values in parts for value in values],
        ids=[name for names, _ in parts for name in names],
        source=sources[0] if len(sources) == 1 else f"{len(tasks)} tasks, {sources[0]} and so on",
        note="; ".join(note for note in notes if note),
        part_of=parent,
    )


def _cut(lm: Any, tasks: Sequence[str]) -> str:
    """How many requests lm-eval cut, in words."""
    cut, requests = (sum(count[task] for task in tasks) for count in (lm.cut, lm.requests))
    if not cut:
        return ""
    return (
        f"{cut} of {requests} requests longer than the model's {lm.max_length} positions, cut from the left"
    )


def _metrics(row: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """lm-eval's `acc,none` and `acc_stderr,none` as pairs; the name of a filter stays, that of none goes."""
    found: dict[str, tuple[float, float | None]] = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{filtered}")
        name = metric if filtered == "none" else key
        found[name] = float(value), float(error) if isinstance(error, int | float) else None
    return found


def _main(metrics: dict[str, Any], higher_is_better: dict[str, bool]) -> str:
    for wanted in _PREFERRED:
        for name in metrics:
            if name.partition(",")[0] == wanted:
                return name
    better = [name for name in metrics if higher_is_better.get(name.partition(",")[0])]
    return next(iter(better or metrics))


def _per_document(found: Any, task: str, name: str) -> tuple[list[str], list[float]]:
    """Which documents, and the metric of each; nothing where it is no number per document."""
    metric, _, filtered = name.partition(",")
    samples = [sample for sample in found["samples"][task] if sample["filter"] == (filtered or "none")]
    if not all(isinstance(sample.get(metric), int | float) for sample in samples):
        return [], []
    ids = [f"{task} {sample['doc_id']} {sample['doc_hash'][:12]}" for sample in samples]
    return ids, [float(sample[metric]) for sample in samples]
