"""The papers' sets of tasks under one name each, and how a list of names becomes a list of lm-eval's own.

A suite is nothing but names that lm-eval knows: prompts, few-shot documents, metrics are lm-eval's. Whatever else it
knows (tasks, groups as mmlu_stem, tags as ai2_arc) may stand beside suites in the list.
"""

import difflib
from collections.abc import Collection, Sequence

from roundel.errors import RecipeError

SUITES: dict[str, tuple[str, ...]] = {
    "spqr-zero-shot": ("winogrande", "piqa", "hellaswag", "arc_easy", "arc_challenge"),
    "lrq-commonsense": (
        "boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa",
    ),
    "autoround-11": (
        "mmlu", "lambada_openai", "hellaswag", "winogrande", "piqa", "truthfulqa_mc1", "openbookqa", "boolq", "rte",
        "arc_easy", "arc_challenge",
    ),
    "mmlu": ("mmlu",),
}  # fmt: skip
# Where lm-eval keeps them.
FOLDERS = (
    "winogrande", "piqa", "hellaswag", "arc", "super_glue/boolq", "openbookqa", "lambada", "truthfulqa", "glue/rte",
    "mmlu/default",
)  # fmt: skip


def tasks_of(names: Sequence[str]) -> list[str]:
    """Suites replaced by what they hold, each name once, in the order of the list."""
    return list(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def expand(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Names that lm-eval knows, each once, in the order of the list.

    Args:
        names: suites and names of lm-eval.
        known: all names of lm-eval.

    Raises:
        RecipeError: the list is empty, or a name is neither.
    """
    if not names:
        raise RecipeError(f"no task: names of lm-eval's tasks, or suites ({', '.join(SUITES)}), are expected")
    found = tasks_of(names)
    for name in found:
        if name not in known:
            raise RecipeError(_unknown(name, known))
    return found


def _unknown(name: str, known: Collection[str]) -> str:
    suites = difflib.get_close_matches(name, SUITES, 2, 0.5)
    tasks = difflib.get_close_matches(name, [task for task in known if task not in suites], 4, 0.6)
    close = [*suites, *tasks]
    near = f"; close to it: {', '.join(close)}" if close else ""
    return (
        f"no task {name!r}{near}; a suite ({', '.join(SUITES)}) or any task, group or tag that lm-eval lists "
        "(lm-eval ls tasks) is expected"
    )
