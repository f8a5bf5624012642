"""A folder with a few invented documents of every data set, in the forms in which they were first published."""

import csv
import json
from pathlib import Path
from typing import Any

PIQA = [
    ("Open a file.", "call open with its name", "call close with its name", 0),
    ("Make a list longer.", "use remove", "use append", 1),
    ("End a loop early.", "write break inside it", "write def inside it", 0),
    ("Find how many items a tuple has.", "call len on it", "call the tuple", 0),
    ("Catch an error.", "import it", "put the code inside try and except", 1),
    ("Leave a function with a value.", "the return statement", "the raise statement of it all", 0),
]
WINOGRANDE = [
    ("The list was longer than the tuple because the _ had more items.", "list", "tuple", "1"),
    ("The list was longer than the tuple because the _ had fewer items.", "list", "tuple", "2"),
    ("The function called the method, and the _ returned first.", "function", "method", "2"),
    ("The module imports the class since the _ is needed.", "class", "module", "1"),
]
ARC = [
    ("Which is a number?", [("A", "an integer"), ("B", "a string"), ("C", "a file")], "A"),
    ("Which ends a block?", [("1", "indentation"), ("2", "a colon"), ("3", "a dot"), ("4", "print")], "1"),
    ("Which maps keys to values?", [("A", "a list"), ("B", "a dictionary"), ("C", "a set")], "B"),
    ("Which cannot change?", [("A", "a list"), ("B", "a set"), ("C", "a tuple"), ("D", "a module")], "C"),
]
BOOLQ = [
    ("is a list mutable", "List -- A list is a mutable sequence of items.", True),
    ("is a tuple mutable", "Tuple -- A tuple is an immutable sequence of items.", False),
    ("is none a value", "None -- None is a value of its own type.", True),
]
OPENBOOKQA = [
    ("A loop runs", [("A", "again and again"), ("B", "never"), ("C", "once only"), ("D", "backwards")], "A"),
    ("A name is bound by", [("A", "a dot"), ("B", "an assignment"), ("C", "a comma"), ("D", "a line")], "B"),
]
LAMBADA = [
    "The statement is executed, and then the value of the expression is the value of the expression",
    'The object is not an instance of the class; "it" is a new-style class',
    "If the name is not found in the local namespace, it is looked up in the global namespace",
    "A function is called with a list of arguments, and the names of the parameters are bound to the arguments",
    "It was a dark and stormy night, and nothing could be seen of the\nlittle house on the mountain",
]
SUBJECTS = (
    "econometrics", "high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics",
    "high_school_microeconomics", "high_school_psychology", "human_sexuality", "professional_psychology",
    "public_relations", "security_studies", "sociology", "us_foreign_policy",
)  # fmt: skip
QUESTIONS = [
    ('What is "x"?', "a name", "a number, or two", "a line", "a file", "A"),
    ("What is 2 + 2?", "1", "2", "3", "4", "D"),
    (" What is\nprinted? ", "all", "none", "some", "one", "B"),
    ("What is a class?", "an object", "a dot", "a type", "a key", "C"),
    ("What is a key?", "a loop", "an index", "a dot", "a type", "B"),
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def nested(rows: list[tuple[str, list[tuple[str, str]], str]]) -> list[dict[str, Any]]:
    """As ARC and OpenBookQA were published."""
    return [
        {
            "id": f"Q{number}",
            "question": {
                "stem": stem,
                "choices": [{"text": text, "label": label} for label, text in choices],
            },
            "answerKey": answer,
        }
        for number, (stem, choices, answer) in enumerate(rows)
    ]


def write_originals(folder: Path) -> None:
    write_lines(folder / "piqa/dev.jsonl", [{"goal": g, "sol1": a, "sol2": b} for g, a, b, _ in PIQA])
    (folder / "piqa/dev-labels.lst").write_text("".join(f"{row[3]}\n" for row in PIQA))
    write_lines(
        folder / "winogrande/dev.jsonl",
        [{"sentence": s, "option1": a, "option2": b, "answer": answer} for s, a, b, answer in WINOGRANDE],
    )
    for name in ("Easy", "Challenge"):
        write_lines(folder / f"arc/ARC-{name}-Test.jsonl", nested(ARC))
        write_lines(folder / f"arc/ARC-{name}-Dev.jsonl", nested(ARC[::-1]))
    write_lines(
        folder / "boolq/val.jsonl",
        [{"question": q, "passage": p, "idx": i, "label": label} for i, (q, p, label) in enumerate(BOOLQ)],
    )
    write_lines(folder / "openbookqa/test.jsonl", nested(OPENBOOKQA))
    write_lines(folder / "lambada/lambada_test.jsonl", [{"text": text} for text in LAMBADA])
    for split in ("dev", "test"):
        (folder / "mmlu" / split).mkdir(parents=True)
        for number, subject in enumerate(SUBJECTS):
            path = folder / f"mmlu/{split}/{subject}_{split}.csv"
            rows = QUESTIONS if split == "dev" else QUESTIONS[: 2 + number % 3]
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
