import pytest

from roundel.errors import RecipeError
from roundel.evaluation.tasks.loading import task_manager
from roundel.evaluation.tasks.suites import SUITES, expand

pytestmark = pytest.mark.slow("loads lm-eval's index of tasks")


def test_lm_eval_knows_every_task_of_every_suite() -> None:
    known = task_manager(["piqa"]).task_index
    assert len(known) < 200  # the folders of the suites alone
    for name, tasks in SUITES.items():
        assert expand([name], known) == list(tasks)
    assert len(SUITES["autoround-11"]) == 11
    assert set(SUITES["spqr-zero-shot"]) < set(SUITES["lrq-commonsense"])


def test_each_task_once_in_the_order_of_the_list() -> None:
    known = {"piqa", "boolq", *SUITES["spqr-zero-shot"]}
    assert expand(["boolq", "spqr-zero-shot", "piqa"], known) == ["boolq", *SUITES["spqr-zero-shot"]]


def test_an_unknown_name_is_one_error_that_names_close_ones() -> None:
    known = task_manager(["piqua"]).task_index
    assert len(known) > 10000
    with pytest.raises(RecipeError, match=r"no task 'piqua'; close to it: piqa"):
        expand(["boolq", "piqua"], known)
    with pytest.raises(RecipeError, match="close to it: spqr-zero-shot"):
        expand(["spqr-zeroshot"], known)
    with pytest.raises(RecipeError, match=r"'qqqqqqqq'; a suite \(spqr-zero-shot, lrq-commonsense"):
        expand(["qqqqqqqq"], known)
    with pytest.raises(RecipeError, match="no task: names"):
        expand([], known)


def test_a_tag_gathers_tasks_of_all_folders() -> None:
    few, everything = task_manager(["rte"]).task_index, task_manager(["glue"]).task_index
    assert few["glue"].tags == {"rte"}
    assert {"rte", "cola", "sst2"} < everything["glue"].tags
    groups = ("mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities")
    for name in (*(f"{group}_tasks" for group in groups[1:]), *groups):
        assert (few[name].tags, few[name].cfg) == (everything[name].tags, everything[name].cfg)
