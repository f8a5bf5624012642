"""Forms in which data sets were first published, as rows with the columns of the hub's copies.

lm-eval's prompts are written for the hub's columns. An original file has other ones: ARC nests its choices in the
question, MMLU is a csv without header, PIQA keeps its labels in a file of their own. A `Form` says which files hold
which split and turns a row into the hub's; a row that has the hub's columns already stays as it is, so that a parquet
file of the hub can lie in the same folder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from roundel.evaluation.tasks.rows import Row


@dataclass(frozen=True)
class Form:
    """How a data set lies on disk.

    Attributes:
        folders: names of the folder that holds it, likeliest first; `{name}`: the configuration (a subject of MMLU).
        files: the original files of each split, below that folder.
        convert: a row to the hub's columns; raises ValueError, KeyError, TypeError, IndexError on other rows.
        columns: what lm-eval's prompts read.
        labels: the column whose values may stand in a file beside (dev.jsonl, dev-labels.lst), and which there are.
        remark: what a reader of the result should know, told by a row as it was found.
    """

    folders: tuple[str, ...]
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    convert: Callable[[Row], Row] = lambda row: row
    columns: tuple[str, ...] = ()
    labels: tuple[str, tuple[str, ...]] | None = None
    remark: Callable[[Row], str] = lambda row: ""


def _piqa(row: Row) -> Row:
    return {**row, "label": int(row["label"])} if "label" in row else row


def _question(row: Row) -> Row:
    """ARC, OpenBookQA: stem and choices inside the question, choices as a list of objects."""
    question = row["question"]
    if not isinstance(question, dict):
        return row
    choices = {key: [choice[key] for choice in question["choices"]] for key in ("text", "label")}
    return {
        "id": row.get("id", ""),
        "question": question["stem"],
        "choices": choices,
        "answerKey": row["answerKey"],
    }


def _openbookqa(row: Row) -> Row:
    if "question_stem" in row:
        return row
    found = _question(row)
    return {"question_stem" if key == "question" else key: value for key, value in found.items()}


def _boolq(row: Row) -> Row:
    """SuperGLUE's label is a boolean, in some copies its name; as first published it is `answer`, and a title is beside
    the passage, which SuperGLUE puts before it."""
    answer = row["label"] if "label" in row else row["answer"]
    if isinstance(answer, str):
        answer = {"false": 0, "true": 1}[answer.lower()]
    passage = f"{row['title']} -- {row['passage']}" if row.get("title") else row["passage"]
    return {"question": row["question"], "passage": passage, "label": int(answer)}


def _boolq_remark(row: Row) -> str:
    return "" if "label" in row or row.get("title") else "passages without their titles, unlike SuperGLUE's"


def _mmlu(row: Row) -> Row:
    if "cells" not in row:
        return row
    question, *choices, answer = row["cells"]
    if len(choices) != 4:
        raise ValueError(f"{len(row['cells'])} cells; question, A, B, C, D, answer are expected")
    if answer not in ("A", "B", "C", "D"):
        raise ValueError(f"the answer {answer!r}; A, B, C or D is expected")
    return {"question": question, "choices": choices, "answer": "ABCD".index(answer)}


def _hellaswag(row: Row) -> Row:
    return {**row, "label": str(row["label"])}


def _truthfulqa(row: Row) -> Row:
    """The authors' mc_task.json has an object of choice: whether it is true; the true one of mc1 stands first."""
    found = {"question": row["question"]}
    for name in ("mc1_targets", "mc2_targets"):
        targets = row[name]
        if "choices" not in targets:
            targets = {"choices": list(targets), "labels": list(targets.values())}
        found[name] = targets
    if found["mc1_targets"]["labels"][0] != 1:
        raise ValueError("the first choice of mc1_targets is not the true one")
    return found


def _arc(name: str) -> Form:
    return Form(
        ("arc", f"arc/{name}", name, f"ARC-V1-Feb2018-2/{name}", "ai2_arc", "allenai/ai2_arc"),
        {
            "train": (f"{name}-Train.jsonl",),
            "validation": (f"{name}-Dev.jsonl",),
            "test": (f"{name}-Test.jsonl",),
        },
        _question,
        ("question", "choices", "answerKey"),
    )


_MMLU_FOLDERS = ("mmlu", "mmlu/data", "cais/mmlu", "hails/mmlu_no_train", "mmlu_no_train")
_MMLU_FILES: dict[str, tuple[str, ...]] = {
    split: (f"{short}/{{name}}_{short}.csv",)
    for split, short in (("dev", "dev"), ("validation", "val"), ("test", "test"))
}

# By data set and configuration, as lm-eval's tasks name them; configuration "*": any.
FORMS: dict[tuple[str, str], Form] = {
    ("baber/piqa", "*"): Form(
        ("piqa", "baber/piqa", "ybisk/piqa"),
        {"train": ("train.jsonl",), "validation": ("dev.jsonl", "valid.jsonl")},
        _piqa,
        ("goal", "sol1", "sol2", "label"),
        ("label", ("0", "1")),
    ),
    ("allenai/winogrande", "winogrande_xl"): Form(
        ("winogrande", "winogrande_1.1", "allenai/winogrande"),
        {"train": ("train_xl.jsonl",), "validation": ("dev.jsonl",)},
        columns=("sentence", "option1", "option2", "answer"),
        labels=("answer", ("1", "2")),
    ),
    ("allenai/ai2_arc", "ARC-Easy"): _arc("ARC-Easy"),
    ("allenai/ai2_arc", "ARC-Challenge"): _arc("ARC-Challenge"),
    ("aps/super_glue", "boolq"): Form(
        ("boolq", "BoolQ", "super_glue", "aps/super_glue"),
        {"train": ("train.jsonl",), "validation": ("val.jsonl", "dev.jsonl")},
        _boolq,
        ("question", "passage", "label"),
        remark=_boolq_remark,
    ),
    ("allenai/openbookqa", "main"): Form(
        ("openbookqa", "OpenBookQA-V1-Sep2018/Data/Main", "allenai/openbookqa"),
        {"train": ("train.jsonl",), "validation": ("dev.jsonl",), "test": ("test.jsonl",)},
        _openbookqa,
        ("question_stem", "choices", "answerKey"),
    ),
    ("EleutherAI/lambada_openai", "default"): Form(
        ("lambada", "lambada_openai", "EleutherAI/lambada_openai"),
        {"test": ("lambada_test.jsonl",)},
        columns=("text",),
    ),
    ("cais/mmlu", "*"): Form(_MMLU_FOLDERS, _MMLU_FILES, _mmlu, ("question", "choices", "answer")),
    ("Rowan/hellaswag", "*"): Form(
        ("hellaswag", "Rowan/hellaswag"),
        {"train": ("hellaswag_train.jsonl",), "validation": ("hellaswag_val.jsonl",)},
        _hellaswag,
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    ("truthfulqa/truthful_qa", "multiple_choice"): Form(
        ("truthfulqa", "truthful_qa", "truthfulqa/truthful_qa"),
        {"validation": ("mc_task.json",)},
        _truthfulqa,
        ("question", "mc1_targets", "mc2_targets"),
    ),
    ("lighteval/siqa", "*"): Form(
        ("siqa", "lighteval/siqa", "social_i_qa"),
        columns=("context", "question", "answerA", "answerB", "answerC", "label"),
    ),
    ("nyu-mll/glue", "rte"): Form(
        ("glue", "nyu-mll/glue"), columns=("sentence1", "sentence2", "label")
    ),
}  # fmt: skip


def form_of(data_set: str, configuration: str | None) -> Form:
    """The form of a data set; of one without an original form that is known: a folder named as the data set."""
    for name in (configuration or "*", "*"):
        if (data_set, name) in FORMS:
            return FORMS[data_set, name]
    return Form((data_set, data_set.rpartition("/")[2]))
