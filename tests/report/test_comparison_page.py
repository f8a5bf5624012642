import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from browser_laws import faults_in_browser
from made import made_comparison
from reading import Page, faults

from roundel.evaluation.interval import Interval
from roundel.report.comparison_page import render_comparison
from roundel.report.plots.scatter import Point, scatter

SECTIONS = ["summary", "verdict", "table", "size", "differences", "errors", "made"]


def bare() -> dict[str, Any]:
    """One model of unknown size, whose quality was not measured."""
    comparison = made_comparison(("alone",))
    comparison.update(pairs=[], verdict=[])
    comparison["models"][0].update(
        quality=None, layers=[], standouts=[], bits_per_parameter=None, file_bytes=None
    )
    comparison["reference"]["quality"] = None
    return comparison


def crowded() -> dict[str, Any]:
    """Models so alike that their names would lie on each other."""
    comparison = made_comparison(tuple(f"a-model-with-a-long-name-{i}" for i in range(9)), blocks=12)
    for i, model in enumerate(comparison["models"]):
        model["bits_per_parameter"] = 4.25 + 0.002 * (i % 3)
        model["file_bytes"] = 5_000_000 + 900 * i
        for text in model["quality"]["texts"]:
            text["kl"]["mean"] = {"value": 0.01 + 1e-5 * i, "low": 0.0097, "high": 0.0104}
    return comparison


CASES = {
    "five": made_comparison,
    "thirty blocks": lambda: made_comparison(blocks=30),
    "crowded": crowded,
    "bare": bare,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], str]:
    comparison = CASES[request.param]()
    return comparison, render_comparison(comparison)


def test_a_page_is_whole_and_works_alone(case: tuple[dict[str, Any], str]) -> None:
    _, html = case
    assert faults(html) == []
    assert [name for name in Page(html).ids if name in SECTIONS] == SECTIONS


def test_the_verdict_comes_first_and_every_model_has_its_row(case: tuple[dict[str, Any], str]) -> None:
    comparison, html = case
    page = Page(html)
    for sentence in comparison["verdict"]:
        assert page.text.index(sentence) < page.text.index("All figures")
    found = [row[0] for row in page.tables["models"][2:]]
    about = [(comparison["reference"]["name"], "the original")]
    about += [(model["name"], model.get("description", "")) for model in comparison["models"]]
    for cell, (name, description) in zip(found, about, strict=True):
        assert cell.startswith(name)
        assert cell.removeprefix(name).strip() == description
    lengths = {len(row) for row in page.tables["models"][2:]}
    assert len(lengths) == 1


def test_noise_is_hollow_and_nothing_else_is(case: tuple[dict[str, Any], str]) -> None:
    comparison, html = case
    ids = Page(html).ids
    groups: dict[tuple[str, str], list[bool]] = {}
    for pair in comparison["pairs"]:
        groups.setdefault((pair["text"], pair["figure"]), []).append(pair["noise"])
    for number, noises in enumerate(groups.values()):
        for i, noise in enumerate(noises):
            assert (f"pairs-{number}-noise-{i}" in ids) == noise
            assert (f"pairs-{number}-differs-{i}" in ids) != noise


def test_what_stands_out_is_named_with_its_model_and_framed_in_its_map() -> None:
    comparison = made_comparison()
    page = Page(render_comparison(comparison))
    broken = [model["name"] for model in comparison["models"] if model["standouts"]]
    assert broken == ["autoround-w4"]
    name = comparison["models"][1]["standouts"][0]["name"]
    assert f"autoround-w4: {name} is out of line: error" in page.text
    frames = [found for found in page.ids if "-standout-" in found]
    assert len(frames) == 1
    assert frames[0].startswith("errors-1-autoround-w4-")


def test_all_maps_share_their_colours() -> None:
    html = render_comparison(made_comparison())
    drawings = [part.partition("</svg>")[0] for part in html.split('<svg id="errors-')[1:]]
    assert len(drawings) == 5
    # The last three words of a map stand at its scale; one that has more beyond it says so.
    scales = [re.findall(r"<text[^>]*>(?:≥ )?([^<]*)</text>", drawing)[-3:] for drawing in drawings]
    assert all(scale == scales[0] for scale in scales)
    assert len(set(scales[0])) == 3


def test_a_model_of_no_measurable_divergence_has_no_point_on_a_logarithmic_axis() -> None:
    points = [Point("same", 16.0, Interval(0.0, 0.0, 0.0)), Point("near", 4.0, Interval(1e-3, -1e-5, 2e-3))]
    svg = scatter(points, "s", "s", along="bits", up="KL")
    assert svg.count('id="s-point-') == 1
    assert scatter(points[:1], "s", "s", along="bits", up="KL") == ""


def test_perplexity_takes_the_place_of_a_divergence_that_nobody_measured() -> None:
    comparison = made_comparison()
    for model in comparison["models"]:
        for text in model["quality"]["texts"]:
            text.update(kl=None, top1=None)
    page = Page(render_comparison(comparison))
    assert page.labels["by-bits-0"] == "perplexity on wikitext2 against bits per parameter"


def test_the_same_comparison_gives_the_same_bytes_and_stays_as_it_is() -> None:
    comparison = made_comparison()
    before = json.dumps(comparison)
    assert render_comparison(comparison) == render_comparison(copy.deepcopy(comparison))
    assert json.dumps(comparison) == before


def test_names_are_text_and_never_markup() -> None:
    comparison = made_comparison(("<b>bold</b>", "a & b", '"><img src=x onerror=y>'))
    comparison["verdict"] = ["<script>alert(1)</script>"]
    html = render_comparison(comparison)
    assert faults(html) == []
    for words in ("<b>bold</b>", "a & b", '"><img src=x onerror=y>', "<script>alert(1)</script>"):
        assert words in Page(html).text


@pytest.mark.parametrize("name", CASES)
def test_in_a_browser(name: str, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    page.write_text(render_comparison(CASES[name]()), encoding="utf-8")
    assert faults_in_browser(browser, page) == []


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (("/far/away/notes.txt", "c4"), ["notes.txt", "c4"]),
        (("/here/notes.txt", "/there/notes.txt"), ["/here/notes.txt", "/there/notes.txt"]),
    ],
)
def test_texts_go_by_their_file_names_where_these_differ(paths: tuple[str, str], wanted: list[str]) -> None:
    comparison = made_comparison(("one", "two"))
    for model in [comparison["reference"], *comparison["models"]]:
        for text, path in zip(model["quality"]["texts"], paths, strict=False):
            text["text"] = path
    html = render_comparison(comparison)
    assert re.findall(r'class="over">([^<]*)</th>', html) == wanted


def test_a_group_of_tasks_is_one_column() -> None:
    comparison = made_comparison(("one", "two"))
    for model in [comparison["reference"], *comparison["models"]]:
        first = model["quality"]["tasks"][0]
        model["quality"]["tasks"] = [
            {**first, "task": "mmlu"},
            *({**first, "task": f"mmlu_{part}", "part_of": "mmlu"} for part in ("law", "history")),
        ]
    html = render_comparison(comparison)
    assert "mmlu" in html
    assert "mmlu_law" not in html
