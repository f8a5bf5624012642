"""Quality in words and rows: every figure with its interval and the convention that it was measured by."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from roundel.evaluation.interval import Interval
from roundel.report.plots.numbers import NONE, count, fixed, percent, short


def interval(plain: Mapping[str, Any] | None, write: Callable[[float], str]) -> str:
    """`0.0123 [0.0119, 0.0128]`, numbers written by a function; of one window the value alone."""
    found = Interval.read(plain)
    if found is None:
        return NONE
    if found.bounds is None:
        return write(found.value)
    low, high = found.bounds
    return f"{write(found.value)} [{write(low)}, {write(high)}]"


def have_bounds(texts: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some figure of some text has an interval."""
    found = [Interval.read(text.get("perplexity")) for text in texts]
    return any(figure is not None and figure.bounds is not None for figure in found)


def stacked(found: Mapping[str, Any] | None, write: Callable[[float], str]) -> tuple[str, str]:
    """The same in two lines: the value, and the interval below it."""
    words = interval(found, write)
    value, _, between = words.partition(" ")
    return value, between


def text_rows(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per text."""
    return [
        {
            "text": text["text"],
            "convention": text.get("convention", ""),
            "measured": f"{count(text['windows'])} windows, {count(text['tokens'])} tokens",
            "original": interval(text.get("reference_perplexity"), fixed),
            "perplexity": interval(text["perplexity"], fixed),
            "ratio": interval(text.get("perplexity_ratio"), lambda x: fixed(x, 4)),
            "kl": interval((text.get("kl") or {}).get("mean"), short),
            "median": short((text.get("kl") or {}).get("median")),
            "p99": short((text.get("kl") or {}).get("p99")),
            "max": short((text.get("kl") or {}).get("max")),
            "top1": interval(text.get("top1"), percent),
        }
        for text in quality.get("texts") or []
    ]


def task_rows(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per task."""
    rows = []
    for task in quality.get("tasks") or []:
        reference, flips = task.get("reference"), task.get("flips")
        rows.append(
            {
                "task": task["task"],
                "metric": task["metric"],
                "documents": count(task["documents"]),
                "fewshot": str(task["fewshot"]),
                "value": score(task),
                "original": score(reference) if reference else NONE,
                "flips": f"{percent(flips['share'], 1)} (lost {flips['lost']}, won {flips['won']})"
                if flips
                else NONE,
            }
        )
    return rows


def score(task: dict[str, Any]) -> str:
    """`0.701 ± 0.010`, one standard error; without one the value alone."""
    value = fixed(task["value"])
    return value if task.get("stderr") is None else f"{value} ± {fixed(task['stderr'])}"


def sentence(quality: dict[str, Any] | None, missing: str) -> str:
    """What the figures say and what they do not, in one sentence."""
    if not quality or not (quality.get("texts") or quality.get("tasks")):
        reason = f": {missing.rstrip('.')}" if missing else ""
        return f"Quality was not measured{reason}. The errors below are those of weights and blocks, not of text."
    if not quality.get("texts"):
        return _tasks_alone(quality["tasks"])
    text = quality["texts"][0]
    ratio, top = Interval.read(text.get("perplexity_ratio")), Interval.read(text.get("top1"))
    kl = Interval.read((text.get("kl") or {}).get("mean"))
    if not ratio and not kl:
        return (
            f"Perplexity on {text['text']} is {interval(text['perplexity'], fixed)}; without the original beside it, "
            "nothing can be said about what quantization cost."
        )
    words = []
    if ratio:
        words.append(f"on {text['text']} {_change(ratio)}")
    if top:
        words.append(f"{percent(top.value, 1)} of the most likely next tokens stay the same")
    if kl:
        words.append(f"the mean KL divergence is {short(kl.value, 3)}")
    said = ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
    return said[0].upper() + said[1:] + "."


def _change(ratio: Interval) -> str:
    if not math.isfinite(ratio.value):
        return "perplexity is no longer a finite number"
    way = f"{'rises' if ratio.value > 1 else 'falls'} by {percent(abs(ratio.value - 1))}"
    if ratio.bounds is None:
        return f"perplexity {way} (of a single window, which tells nothing of another)"
    low, high = ratio.bounds
    between = f"95 % interval {percent(low - 1)} to {percent(high - 1)}"
    if low <= 1 <= high:
        return f"perplexity shows no change that can be told from noise ({between})"
    return f"perplexity {way} ({between})"


def _tasks_alone(tasks: list[dict[str, Any]]) -> str:
    both = [task for task in tasks if task.get("reference") and task.get("stderr") is not None]
    if not both:
        return f"{len(tasks)} tasks were measured without the original: what quantization cost is not known."
    worse = [
        task["task"]
        for task in both
        if task["reference"]["value"] - task["value"]
        > 2 * max(task["stderr"], task["reference"]["stderr"] or 0)
    ]
    if worse:
        return f"Worse than the original by more than two standard errors: {', '.join(worse)}."
    return f"On {len(both)} tasks no loss of more than two standard errors; no text was measured."
