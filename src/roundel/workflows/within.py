"""A limit of time: how many samples and iterations fit into it, by what one block takes on this machine.

A run takes the highest rung of the ladder (recipe/ladder.py) that fits. The text is read, and a block is tried, before
the choice; text that the model writes itself is timed on a few tokens of it.
"""

import re
from dataclasses import replace
from typing import Any

from roundel.errors import RecipeError
from roundel.formatting import about
from roundel.model.source import positions
from roundel.recipe import Recipe, Work
from roundel.recipe.ladder import rungs, step_size
from roundel.workflows.costs import Costs, measure_costs
from roundel.workflows.run import Run

# A run is planned to end a little early: estimates err, and a promise that is broken is none.
_PLANNED = 0.9
# Samples of an iteration by which its time is known for all others.
_TRIED = 2


def keep_within(run: Run, limit: float) -> None:
    """Choose samples and iterations that a time suffices for. A run that goes on keeps what it chose.

    Args:
        run: before its work; it takes the recipe that fits.
        limit: seconds, from the run's beginning.

    Raises:
        RecipeError: not even the least can be done in it.
    """
    journal, asked = run.destination.journal, run.recipe
    key = {"within": limit, "recipe": asked.settings(), "model": run.source.name}
    chosen: dict[str, Any] | None = None
    with run.ranks.raise_together():
        if run.ranks.first:
            if journal is not None and not run.destination.options.restart:
                chosen = journal.choice(key)
            chosen = chosen or _choose(run, limit)
            if journal is not None:
                journal.save_choice(key, chosen)
    chosen = run.ranks.broadcast_object(lambda: chosen)
    run.progress.say(chosen["words"])
    run.take(asked.with_settings(name=f"{asked.name} (within {about(limit)})", **chosen["keys"]))


def _choose(run: Run, limit: float) -> dict[str, Any]:
    """Keys of the recipe, and what is said of them."""
    reach, recipe = positions(run.model), run.recipe
    highest = rungs(learned=recipe.tuned, reach=reach)[-1]
    tried = recipe.model_copy(update=work_keys(recipe, replace(highest, minibatch=_TRIED)))
    measured = run.destination.journal is not None and run.destination.options.held_out is not None
    costs = measure_costs(run, tried, highest.samples, measured=measured)
    ladder = rungs(learned=recipe.tuned, counted=costs.counted, available=costs.available, reach=reach)
    work = choose(ladder, limit, costs)
    return {"keys": work_keys(recipe, work), "words": _describe(recipe, limit, work, costs)}


def work_keys(recipe: Recipe, work: Work) -> dict[str, float]:
    """The keys of a recipe that ask for this work.

    A minibatch is taken at once; in parts where the recipe accumulates gradients (`--low-memory`).
    """
    keys: dict[str, float] = {"nsamples": work.samples, "seqlen": work.seqlen}
    if not recipe.tuned:
        return keys | {"batch_size": work.minibatch}
    size = max(1, work.minibatch // recipe.gradient_accumulate_steps)
    keys |= {"iters": work.iters, "batch_size": size}
    if recipe.gradient_accumulate_steps > 1:
        keys["gradient_accumulate_steps"] = work.minibatch // size
    signed_steps = recipe.optimizer == "signsgd" and not recipe.divides
    if signed_steps and recipe.lr is None and work.iters:
        keys["lr"] = step_size(work.iters, recipe.bits)
    return keys


def _describe(recipe: Recipe, limit: float, work: Work, costs: Costs) -> str:
    planned, own = costs.seconds(work), Work.of(recipe)
    words = f"Within {about(limit)}: {_amount(work)}, about {about(planned)} in all"
    asked = costs.seconds(own)
    if asked <= planned:
        return words
    return f"{words}; {recipe.name} has {_amount(own)}, which would take about {about(asked)}"


def _amount(work: Work) -> str:
    data = f"{work.samples} samples of {work.seqlen} tokens"
    return f"{work.iters} iterations of {work.minibatch} on {data}" if work.iters else data


def choose(ladder: list[Work], limit: float, costs: Costs) -> Work:
    """The highest rung that fits.

    Raises:
        RecipeError: not even the lowest does.
    """
    found, *others = ladder
    least = costs.seconds(found)
    if least > limit:
        raise RecipeError(
            f"--within {about(limit)} is too little: the least that can be done takes about {about(least)} here. "
            "Give more time, or round without data: --method rtn --set start=minmax"
        )
    for higher in others:
        # Half as many iterations of twice the minibatch may take less time than the rung below.
        if costs.seconds(higher) <= _PLANNED * limit:
            found = higher
    return found


def check_limit(recipe: Recipe) -> None:
    """See that a limit has something to choose.

    Raises:
        RecipeError: it has not.
    """
    if not recipe.needs_calibration:
        raise RecipeError(
            f"--within (within=) has nothing to choose: {recipe.name} reads no data and tunes nothing; leave it out, "
            "or set start=search"
        )


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "min": 60.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(min|s|m|h)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def parse_limit(text: str | float) -> float:
    """Seconds of `90s`, `20m`, `1.5h` or `1h30m`; a number is one of seconds.

    Raises:
        RecipeError: it is none of these.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        words = str(text).replace(" ", "").lower()
        parts = _PART.findall(words) if _WHOLE.fullmatch(words) else []
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < float("inf"):
        raise RecipeError(f"{text!r} is no time: 90s, 20m, 1.5h or 1h30m are expected")
    return seconds
