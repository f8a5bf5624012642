"""What a task measured, and which documents another model answers differently.

Accuracy hides changes: a model that loses twelve documents and wins nine has nearly the accuracy it had. `flips`
counts both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roundel.errors import RoundelError


@dataclass(frozen=True)
class TaskResult:
    """One task, or a group of tasks, of one model.

    Attributes:
        task: lm-eval's name.
        metric: the main one: acc_norm where the task has it, else acc, else the first that lm-eval lists.
        value: of the main metric.
        stderr: lm-eval's standard error of it; None where lm-eval gives none, as for one document.
        documents: how many were evaluated.
        fewshot: examples before each document; None for a group whose tasks differ.
        version: of the task, by lm-eval.
        metrics: all of lm-eval's metrics with their standard errors; the filter's name follows a comma if it has one.
        correct: the main metric of each document, in order; of a group, its tasks one after another; empty where
            it is no number per document.
        ids: which document each of `correct` is: task, number, hash of its content.
        source: the data set.
        note: what was left out or cut; empty if nothing.
        part_of: the group that it was run as a part of; empty if none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    documents: int
    fewshot: int | None
    version: str
    metrics: dict[str, tuple[float, float | None]]
    correct: list[float]
    ids: list[str]
    source: str
    note: str = ""
    part_of: str = ""

    @property
    def counts(self) -> bool:
        """Whether each document is either right or wrong."""
        return bool(self.correct) and all(value in (0.0, 1.0) for value in self.correct)


@dataclass(frozen=True)
class Flips:
    """Documents whose correctness changed.

    Attributes:
        share: of all documents.
        lost: right by the reference, wrong now.
        won: wrong by the reference, right now.
    """

    share: float
    lost: int
    won: int


def flips(reference: TaskResult, found: TaskResult) -> Flips:
    """What changed between two models on the same documents.

    Raises:
        RoundelError: the results are of different documents, prompts or metrics, or no document is right or wrong.
    """
    for word, a, b in (
        ("tasks", reference.task, found.task),
        ("metrics", reference.metric, found.metric),
        ("numbers of examples", reference.fewshot, found.fewshot),
        ("versions", reference.version, found.version),
        ("numbers of documents", len(reference.ids), len(found.ids)),
    ):
        if a != b:
            raise RoundelError(
                f"flips of {found.task} need the same documents and prompts: the reference has other {word} ({a}) than "
                f"the model ({b}); run both with the same settings"
            )
    differ = next((pair for pair in zip(reference.ids, found.ids, strict=True) if pair[0] != pair[1]), None)
    if differ is not None:
        raise RoundelError(
            f"flips of {found.task} need the same documents: {differ[0]} of the reference is {differ[1]} of the model; "
            "run both on the same data"
        )
    if not (reference.counts and found.counts):
        raise RoundelError(
            f"{found.metric} of {found.task} does not say of a document whether it is right: no flips of it"
        )
    pairs = list(zip(reference.correct, found.correct, strict=True))
    lost, won = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return Flips((lost + won) / len(pairs), lost, won)


def without_parts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plain results of tasks and groups; what a group was put together from, dozens of rows of MMLU, is left out."""
    return [row for row in rows if not row.get("part_of")]


def to_plain(
    results: Sequence[TaskResult], reference: Sequence[TaskResult] | None = None
) -> list[dict[str, Any]]:
    """Results as plain JSON, beside those of a reference that has the same tasks.

    Raises:
        RoundelError: a task is not among the reference's, or is of other documents there.
    """
    by_name = {result.task: result for result in reference or ()}
    rows: list[dict[str, Any]] = []
    for result in results:
        row: dict[str, Any] = {
            "task": result.task,
            "metric": result.metric,
            "value": result.value,
            "stderr": result.stderr,
            "documents": result.documents,
            "fewshot": result.fewshot,
            "metrics": result.metrics,
            "source": result.source,
            "note": result.note,
            "part_of": result.part_of,
            "reference": None,
            "flips": None,
        }
        if reference is not None:
            if result.task not in by_name:
                raise RoundelError(
                    f"the reference has no result of {result.task}: run both on the same tasks"
                )
            other = by_name[result.task]
            row["reference"] = {"value": other.value, "stderr": other.stderr}
            if result.counts and other.counts:
                changed = flips(other, result)
                row["flips"] = {"share": changed.share, "lost": changed.lost, "won": changed.won}
        rows.append(row)
    return rows
