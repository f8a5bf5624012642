"""A limit of time: how many samples and iterations fit into it, by what one block takes on this machine.

A run takes the highest rung of the ladder (recipe/ladder.py) that fits. The text is read, and a block is tried, before
the choice; text that the model writes itself is timed on a few tokens of it.
"""

import re
from typing import Any

from roundel.errors import RecipeError
from roundel.formatting import about
from roundel.model.source import positions
from roundel.recipe import CHOSEN_KEYS, Recipe
from roundel.recipe.ladder import BATCH, SEQLEN, rungs
from roundel.workflows.costs import Costs, measure_costs
from roundel.workflows.run import Run

# A run is planned to end a little early: estimates err, and a promise that is broken is none.
_PLANNED = 0.9


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
    length = SEQLEN if reach is None else min(SEQLEN, reach)
    settings = {"seqlen": length, **_batches(recipe)}
    most = rungs(learned=recipe.tuned)[-1].samples
    measured = run.destination.journal is not None and run.destination.options.held_out is not None
    costs = measure_costs(run, recipe.model_copy(update=settings), most, measured=measured)
    keys, seconds = choose(recipe, limit, costs)
    keys |= settings
    return {"keys": keys, "words": _describe(recipe, limit, keys, seconds, costs)}


def _batches(recipe: Recipe) -> dict[str, int]:
    """A minibatch at once; in as many parts as there are where a recipe accumulates gradients (`--low-memory`)."""
    if not recipe.tuned or recipe.gradient_accumulate_steps == 1:
        return {"batch_size": BATCH}
    size = max(1, BATCH // recipe.gradient_accumulate_steps)
    return {"batch_size": size, "gradient_accumulate_steps": BATCH // size}


def _describe(recipe: Recipe, limit: float, keys: dict[str, int], seconds: float, costs: Costs) -> str:
    chosen = _amount(recipe, keys)
    own = {key: getattr(recipe, key) for key in CHOSEN_KEYS}
    words = f"Within {about(limit)}: {chosen}, about {about(seconds)} in all"
    asked = costs.of(recipe)
    if asked <= seconds:
        return words
    return f"{words}; {recipe.name} has {_amount(recipe, own)}, which would take about {about(asked)}"


def _amount(recipe: Recipe, keys: dict[str, int]) -> str:
    data = f"{keys['nsamples']} samples of {keys['seqlen']} tokens"
    return f"{keys['iters']} iterations of {keys['batch_size']} on {data}" if recipe.tuned else data


def choose(recipe: Recipe, limit: float, costs: Costs) -> tuple[dict[str, int], float]:
    """The keys of the highest rung that fits, and the seconds that it is planned to take.

    Raises:
        RecipeError: not even the lowest does.
    """
    first, *others = rungs(learned=recipe.tuned, counted=costs.counted, available=costs.available)
    found, seconds = first, costs.seconds(first.samples, first.iters)
    if seconds > limit:
        raise RecipeError(
            f"--within {about(limit)} is too little: the least that can be done takes about {about(seconds)} here. "
            "Give more time, or round without data: --method rtn --set start=minmax"
        )
    for higher in others:
        planned = costs.seconds(higher.samples, higher.iters)
        if planned > _PLANNED * limit:
            break
        found, seconds = higher, planned
    keys = {"nsamples": found.samples}
    return (keys | {"iters": found.iters} if recipe.tuned else keys), seconds


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
