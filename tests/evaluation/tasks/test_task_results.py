from dataclasses import replace

import pytest

from roundel.errors import RoundelError
from roundel.evaluation.tasks.results import Flips, TaskResult, flips, to_plain


def result(correct: list[float], task: str = "piqa") -> TaskResult:
    value = sum(correct) / len(correct)
    return TaskResult(
        task, "acc", value, 0.1, len(correct), 0, "1.0", {"acc": (value, 0.1)}, correct,
        [f"{task} {i} hash" for i in range(len(correct))], "piqa/dev.jsonl",
    )  # fmt: skip


REFERENCE = result([1, 1, 1, 0, 0, 0, 1, 0])
FOUND = result([1, 0, 0, 0, 1, 0, 1, 0])


def test_flips_count_what_accuracy_hides() -> None:
    assert flips(REFERENCE, FOUND) == Flips(3 / 8, lost=2, won=1)
    assert flips(FOUND, REFERENCE) == Flips(3 / 8, lost=1, won=2)
    assert flips(REFERENCE, REFERENCE) == Flips(0.0, 0, 0)
    swapped = result([0, 0, 0, 1, 1, 1, 0, 1])
    assert swapped.value == REFERENCE.value
    assert flips(REFERENCE, swapped) == Flips(1.0, 4, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "acc_norm"}, r"other metrics \(acc\) than the model \(acc_norm\)"),
        ({"fewshot": 5}, "other numbers of examples"),
        ({"version": "2.0"}, "other versions"),
        ({"ids": FOUND.ids[:-1]}, r"other numbers of documents \(8\) than the model \(7\)"),
        (
            {"ids": [*FOUND.ids[:-1], "piqa 7 other"]},
            "piqa 7 hash of the reference is piqa 7 other of the model",
        ),
        ({"correct": [0.5] * 8}, "acc of piqa does not say of a document whether it is right"),
        ({"task": "boolq"}, "other tasks"),
    ],
)
def test_flips_of_other_documents_are_an_error(changes: dict, words: str) -> None:
    with pytest.raises(RoundelError, match=words):
        flips(REFERENCE, replace(FOUND, **changes))


def test_plain_rows() -> None:
    other = replace(result([1, 0, 1], "lambada_openai"), correct=[], ids=[])
    rows = to_plain([FOUND, other], [other, REFERENCE])
    assert rows[0] == {
        "task": "piqa",
        "metric": "acc",
        "value": 3 / 8,
        "stderr": 0.1,
        "documents": 8,
        "fewshot": 0,
        "metrics": FOUND.metrics,
        "source": FOUND.source,
        "note": FOUND.note,
        "part_of": FOUND.part_of,
        "reference": {"value": 4 / 8, "stderr": 0.1},
        "flips": {"share": 3 / 8, "lost": 2, "won": 1},
    }
    assert rows[1]["reference"] == {"value": other.value, "stderr": 0.1}
    assert rows[1]["flips"] is None
    assert [row["reference"] for row in to_plain([FOUND])] == [None]
    with pytest.raises(RoundelError, match="the reference has no result of piqa"):
        to_plain([FOUND], [other])
