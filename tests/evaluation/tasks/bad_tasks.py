"""Tasks that nobody knows, and damaged documents of those that are known."""

from typing import Any

from bad_inputs.box import Box
from bad_inputs.case import Arrange, area
from bad_inputs.commands import evaluated
from zoo import zoo_model

QUESTION = '{"goal": "open a door", "sol1": "pull it", "sol2": "paint it"}\n'


def asked(box: Box, tasks: str, *more: Any) -> list[Any]:
    """Tasks, of documents in the folder `data`."""
    (box / "data").mkdir(exist_ok=True)
    return ["eval", zoo_model("llama"), "--tasks", tasks, "--data-dir", box / "data", *more]


def piqa(rows: str, labels: str = "0\n1\n") -> Arrange:
    """A data set in the form in which it was published."""

    def arrange(box: Box) -> list[Any]:
        box.write("data/piqa/dev.jsonl", rows)
        box.write("data/piqa/dev-labels.lst", labels)
        return asked(box, "piqa")

    return arrange


ROWS = [
    ("a task that nobody knows", 2, "no task 'piqua'; close to it: piqa", lambda b: asked(b, "piqua")),
    ("commas without names", 2, "names none", lambda b: asked(b, ",")),
    (
        "no such folder of data",
        4,
        "is no folder",
        lambda b: ["eval", zoo_model("llama"), "--tasks", "piqa", "--data-dir", b / "none"],
    ),
    ("a folder without the task's documents", 4, "no documents of piqa", lambda b: asked(b, "piqa")),
    ("documents without a column", 4, "no sol2", piqa(QUESTION.replace("sol2", "answer") * 2)),
    ("documents that are no JSON", 4, "line 2 is no JSON", piqa(QUESTION + "what?\n")),
    ("an empty file of documents", 4, "holds no document", piqa("", "")),
    ("fewer labels than documents", 4, "has 2 labels for 3 documents", piqa(QUESTION * 3)),
    ("a label that is no answer", 4, "line 2: '7'", piqa(QUESTION * 2, "0\n7\n")),
    (
        "examples where there are only the evaluated documents",
        4,
        "a split for examples beside them is expected",
        lambda b: [*piqa(QUESTION * 2)(b), "--fewshot", "3"],
    ),
    (
        "examples without a task",
        2,
        "are for tasks",
        lambda b: evaluated(b, zoo_model("llama"), "--fewshot", "3"),
    ),
    (
        "an unknown task beside a text, which would be measured first",
        2,
        "no task 'piqua'",
        lambda b: evaluated(b, zoo_model("llama"), "--tasks", "piqua"),
    ),
    (
        "less than one request in a pass",
        2,
        "'--batch-size'",
        lambda b: [*piqa(QUESTION * 2)(b), "--batch-size", "0"],
    ),
]

AREA = area("`--tasks` and `--data-dir`", ROWS)
