"""How much work a command does where nothing says how much."""

from typing import Any

import pytest

from roundel.cli.options import suited_recipe
from roundel.recipe import Recipe


def suited(
    recipe: str | None = None, within: str | None = None, settings: list[str] | None = None, **given: Any
) -> dict[str, Any]:
    found = suited_recipe(recipe, given, settings, within=within, device="cpu")
    return {key: getattr(found, key) for key in ("iters", "nsamples", "seqlen", "batch_size")}


def published(**settings: Any) -> dict[str, Any]:
    recipe = Recipe(**settings)
    return {key: getattr(recipe, key) for key in ("iters", "nsamples", "seqlen", "batch_size")}


ON_CPU = {"iters": 100, "nsamples": 64, "seqlen": 256, "batch_size": 2}


def test_minutes_on_a_cpu() -> None:
    assert suited() == ON_CPU
    assert suited(bits=3) == ON_CPU


@pytest.mark.parametrize("key", ON_CPU)
def test_what_is_said_holds(key: str) -> None:
    assert suited(**{key: 9}) == {**ON_CPU, key: 9}
    assert suited(settings=[f"{key}=9"]) == {**ON_CPU, key: 9}


def test_methods_that_learn_nothing_have_shorter_samples_only() -> None:
    assert suited(method="gptq") == {**published(method="gptq"), "seqlen": 512, "batch_size": 2}
    assert suited(method="rtn") == published(method="rtn")


def test_recipes_are_as_published_and_a_time_chooses_for_itself() -> None:
    assert suited(recipe="autoround-w4g128") == published(iters=200)
    assert suited(recipe="autoround-w4g128", bits=3) == published(iters=200)
    assert suited(within="20m") == published()
