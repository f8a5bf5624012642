import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from browser import Browser
from browser_laws import faults_in_browser
from made import made_report
from matplotlib.figure import Figure
from reading import Page, faults

import roundel
from roundel.model.checkpoint import read_header
from roundel.report import page as page_module
from roundel.report.page import PAGE, available, render_page, write_page
from roundel.report.parts.budget import budget
from roundel.report.parts.layers import kind_of, layer_grid
from roundel.report.plots.blocks import log_ticks
from roundel.report.plots.curves import thinned
from roundel.report.plots.heat import Grid, common_span, heat_map
from roundel.report.plots.numbers import duration, fixed, percent, short, size

SECTIONS = [
    "summary",
    "quality",
    "blocks",
    "errors",
    "outliers",
    "bits",
    "cost",
    "coverage",
    "recipe",
    "manifest",
]


def bare(report: dict[str, Any]) -> dict[str, Any]:
    """The same with everything null that may be null."""
    report = copy.deepcopy(report)
    report.update(details={}, quality=None, no_quality="no text was given", standouts=[])
    for block in report["manifest"]["blocks"]:
        block.update(peak_bytes=None, loss_start=None, loss_end=None, curve=[])
    for layer in report["manifest"]["layers"]:
        layer.update(tokens=None, error=None)
    report["manifest"].update(calibration=None, plan=None)
    del report["manifest"]["file_bytes"], report["manifest"]["bits_per_parameter"]
    return report


def uneven() -> dict[str, Any]:
    """Mixed bits, a Linear that one block lacks, a quantized head, an input without a median."""
    report = made_report(3)
    layers = report["manifest"]["layers"]
    layers.remove(next(layer for layer in layers if layer["name"] == "model.layers.1.self_attn.k_proj"))
    head = next(layer for layer in layers if layer["name"] == "lm_head")
    like = next(layer for layer in layers if layer["bits"] is not None)
    head.update(
        {key: like[key] for key in ("bits", "group_size", "sym", "bits_per_weight", "paper_bits", "outliers")}
    )
    head.update(reason="", error=3e-5, bits=8, bits_per_weight=8.2)
    report["details"]["lm_head"] = copy.deepcopy(report["details"][like["name"]])
    report["details"][like["name"]]["inputs"].update(median=0.0)
    return report


def astray() -> dict[str, Any]:
    """A run whose numbers got lost: errors, losses and statistics that are not finite."""
    report = made_report(3)
    lost = report["manifest"]["layers"][4]
    lost["error"] = math.nan
    words = f"{lost['name']}: its error is not finite"
    report["standouts"].insert(0, {"name": lost["name"], "error": None, "median": None, "words": words})
    report["manifest"]["blocks"][1].update(loss_start=math.nan, loss_end=math.inf, curve=[math.nan] * 9)
    report["manifest"]["blocks"][2]["curve"][7] = math.inf
    report["details"][lost["name"]]["weight"].update(std=math.nan, largest=math.nan, kurtosis=math.nan)
    text = report["quality"]["texts"][0]
    for figure in (text["perplexity"], text["perplexity_ratio"], text["kl"]["mean"]):
        figure.update(value=math.inf, low=math.nan, high=math.inf)
    return report


REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "tuned": lambda: made_report(2),
    "one block": lambda: made_report(1, iters=5),
    "thirty blocks": lambda: made_report(30, iters=200),
    "rounded": lambda: made_report(2, method="rtn"),
    "outliers": lambda: made_report(3, method="spqr"),
    "experts": lambda: made_report(2, experts=60),
    "uneven": uneven,
    "astray": astray,
    "bare": lambda: bare(made_report(2)),
}


@pytest.fixture(scope="module", params=REPORTS)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], str]:
    report = REPORTS[request.param]()
    return report, render_page(report)


def test_a_page_is_whole_and_works_alone(case: tuple[dict[str, Any], str]) -> None:
    _, html = case
    assert faults(html) == []
    assert [name for name in Page(html).ids if name in SECTIONS] == SECTIONS


def test_every_layer_is_in_the_coverage_table_with_what_became_of_it(
    case: tuple[dict[str, Any], str],
) -> None:
    report, html = case
    rows = Page(html).tables["coverage-table"][1:]
    layers = report["manifest"]["layers"]
    assert [row[0] for row in rows] == [layer["name"] for layer in layers]
    for row, layer in zip(rows, layers, strict=True):
        assert layer["reason"] in row[-1]
        assert row[3] == ("\u2013" if layer["bits"] is None else str(layer["bits"]))


def test_what_stands_out_is_named_first_and_framed(case: tuple[dict[str, Any], str]) -> None:
    report, html = case
    page = Page(html)
    names = [standout["name"] for standout in report["standouts"]]
    assert page.marked == names
    assert all(page.text.index(name) < page.text.index("Quality") for name in names)
    layers = [layer for layer in report["manifest"]["layers"] if None not in (layer["bits"], layer["block"])]
    kinds = list(dict.fromkeys(map(kind_of, layers)))
    places = {layer["name"]: (kinds.index(kind_of(layer)), layer["block"]) for layer in layers}
    wanted = {"error-per-layer-standout-{}-{}".format(*places[name]) for name in names}
    assert {name for name in page.ids if name.startswith("error-per-layer-standout")} == wanted


def test_one_broken_layer_does_not_flatten_the_colours_of_the_others() -> None:
    report = made_report(4)
    layers = [layer for layer in report["manifest"]["layers"] if layer["error"] is not None]
    grid = layer_grid(layers, {layer["name"]: layer["error"] for layer in layers})
    broken = report["standouts"][0]["name"]
    assert common_span([grid], {broken})[1] < 0.1 * common_span([grid])[1]
    assert "≥" in heat_map(grid, "m", "m", marked={broken})
    assert "≥" not in heat_map(grid, "m", "m")


def test_a_heat_map_says_what_it_leaves_out() -> None:
    def kinds(count: int) -> str:
        cells = {(row, 0): (0.1 + row, f"model.layers.0.kind{row}") for row in range(count)}
        return heat_map(Grid([f"kind{row}" for row in range(count)], [0], cells), "m", "m")

    assert "not drawn" not in kinds(40)
    assert "3 more kinds are not drawn" in kinds(43)


def test_the_same_report_gives_the_same_bytes_whatever_the_users_settings() -> None:
    report = made_report(3, method="spqr")
    before = json.dumps(report)
    first = render_page(report)
    with matplotlib.rc_context({"font.size": 23, "svg.fonttype": "path", "axes.grid": True}):
        mine = dict(matplotlib.rcParams)
        second = render_page(json.loads(before))
        assert dict(matplotlib.rcParams) == mine
    assert first == second
    assert json.dumps(report) == before


def test_names_are_text_and_never_markup() -> None:
    report = made_report(2, source="models/<b>bold</b>&amp;")
    evil = "<script>alert(1)</script>"
    report["manifest"]["layers"][0]["note"] = report["manifest"]["blocks"][0]["note"] = evil
    layer = report["manifest"]["layers"][1]
    details = report["details"].pop(layer["name"])
    layer["name"] = 'model.layers.0."><img src=x onerror=y>'
    report["details"][layer["name"]] = details
    report["quality"]["texts"][0]["convention"] = evil
    report["no_quality"] = evil
    html = render_page(report)
    page = Page(html)
    assert faults(html) == []
    assert evil in page.text
    assert layer["name"] in page.text
    assert "b>&amp;" in page.text  # the folder's own name, letter by letter
    assert "<b>bold" not in html


@pytest.mark.parametrize(("method", "may_be_compared"), [("rtn", False), ("gptq", True), ("spqr", True)])
def test_what_was_not_measured_is_said(method: str, may_be_compared: bool) -> None:
    report = bare(made_report(2, method=method))
    text = " ".join(Page(render_page(report)).text.split())
    assert "Quality was not measured: no text was given" in text
    assert "No losses are known" in text
    assert ("with block_loss: true a recipe has them compared" in text) == may_be_compared
    assert "No statistics of weights and inputs were kept" in text


def test_a_change_within_its_interval_is_not_called_a_change() -> None:
    report = made_report(2)
    ratio = {"value": 1.004, "low": 0.998, "high": 1.01}
    report["quality"]["texts"][0]["perplexity_ratio"] = ratio
    assert "no change that can be told from noise" in render_page(report)
    ratio["low"] = 1.001
    assert "rises by 0.40 % (95 % interval 0.10 % to 1.00 %)" in render_page(report)
    ratio["value"] = math.nan
    assert "perplexity is no longer a finite number" in render_page(report)


def test_what_went_otherwise_than_asked_is_at_the_top() -> None:
    report = made_report(2)
    layers = report["manifest"]["layers"]
    layers[0]["note"] = "damping raised to 0.1"
    for field in ("bits", "error", "bits_per_weight"):
        layers[1][field] = None
    layers[1]["reason"] = "no Linear: stays as it is"
    top = Page(render_page(report)).text.partition("Quality")[0]
    assert f"{layers[0]['name']}: damping raised to 0.1" in top
    assert f"{layers[1]['name']} not quantized: no Linear" in top
    assert "embed_tokens" not in top  # nobody wonders about that one


def test_a_big_models_page_stays_small() -> None:
    assert len(render_page(made_report(80, iters=2000)).encode()) < 3_000_000


def test_experts_share_a_row_which_shows_the_worst() -> None:
    report = made_report(2, experts=8)
    layers = [layer for layer in report["manifest"]["layers"] if layer["bits"] is not None]
    grid = layer_grid(layers, {layer["name"]: layer["error"] for layer in layers})
    assert len(grid.rows) == 4 + 3
    assert "mlp.experts.*.down_proj" in grid.rows
    row = grid.rows.index("mlp.experts.*.down_proj")
    for block in range(2):
        theirs = [
            (layer["error"], layer["name"])
            for layer in layers
            if layer["block"] == block and layer["name"].endswith("down_proj")
        ]
        assert grid.cells[row, block] == max(theirs)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0097, 0.0104), (3e-4, 8e-4), (0.02, 0.11), (1e-5, 3.0), (9.0, 9.5)]
)
def test_words_at_a_logarithmic_axis_say_where_their_ticks_are(low: float, high: float) -> None:
    axes = Figure().add_subplot()
    axes.set_yscale("log")
    log_ticks(axes, low, high)
    ticks = list(axes.get_yticks())
    words = [label.get_text() for label in axes.get_yticklabels()]
    assert len(ticks) >= 3
    normal = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    read = [float(word.translate(normal).replace("\u00d710", "e")) for word in words]
    assert read == pytest.approx(ticks)


@pytest.mark.parametrize("steps", [2, 5, 99, 100, 101, 1000, 4999])
def test_thinned_curves_keep_their_mean_and_their_length(steps: int) -> None:
    curve = [math.exp(-i / steps) for i in range(steps)]
    places, losses = thinned(curve)
    assert len(places) == len(losses) <= 100
    assert places[0] >= 0
    assert places[-1] <= steps - 1
    assert places == sorted(places)
    assert losses == sorted(losses, reverse=True)
    assert len(losses) >= min(steps, 50)
    if steps <= 100:
        assert losses == curve


def test_the_budget_adds_up_to_the_file_and_knows_the_embedding(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe.create(method="rtn", group_size=32)
    manifest = roundel.quantize(llama, recipe, output=tmp_path / "out", held_out=None).manifest
    entries = {entry.name: entry.bytes for entry in budget(manifest)}
    assert sum(entries.values()) == pytest.approx(manifest["file_bytes"])
    tensors = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        tensors |= read_header(file)
    stored = {name: entry.end - entry.begin for name, entry in tensors.items()}
    assert entries["embeddings"] == stored["model.embed_tokens.weight"]
    assert entries["matrices left as they are"] == stored["lm_head.weight"]
    assert entries["codes"] == sum(n for name, n in stored.items() if name.endswith("weight_packed"))
    # This model of 32 bits has its scales, of 16, written in its own type.
    scales = [math.prod(entry.shape) for name, entry in tensors.items() if name.endswith("weight_scale")]
    assert entries["scales"] == 2 * sum(scales)
    assert faults(render_page({"manifest": manifest, "details": {}, "quality": None, "standouts": []})) == []


def test_the_budget_knows_outliers_and_the_second_level(llama: Path) -> None:
    recipe = roundel.Recipe.create(method="spqr", bits=3, outliers=0.01, nsamples=8, seqlen=64)
    result = roundel.quantize(llama, recipe, held_out=None)
    entries = {entry.name: entry.bytes for entry in budget(result.manifest)}
    weights = list(result.weights.values())
    assert entries["outliers"] == pytest.approx(sum(4 * w.outliers.count for w in weights))
    assert entries["codes"] == sum(w.codes.numel() * 3 / 8 for w in weights)
    assert entries["scales"] == sum(w.scale.codes.numel() * 4 / 8 for w in weights)
    assert sum(entries.values()) == pytest.approx(sum(w.stored_bits() / 8 for w in weights))


def test_without_the_extra_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available() == ""
    monkeypatch.setattr(page_module, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert "matplotlib missing" in available()
    assert "pip install 'roundel[report]'" in available()


def test_the_module_alone_brings_neither_matplotlib_nor_jinja2() -> None:
    code = (
        "import sys, roundel.report.page, roundel.report.comparison_page\n"
        "print([name for name in ('matplotlib', 'jinja2') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_numbers_look_the_same_everywhere() -> None:
    assert [short(x) for x in (0.01234567, 123.456, 1234567.0, 3.2e-7, -0.5, 0, None)] == [
        "0.01235",
        "123.5",
        "1.235\u00d710⁶",
        "3.200\u00d710⁻⁷",
        "\u22120.5000",
        "0",
        "\u2013",
    ]
    assert short(0.09999999, 2) == "0.10"
    assert short(float("nan")) == "not a number"
    assert [size(x) for x in (12, 1234, 1.5e6, 174041320, 2.3e9)] == [
        "12 bytes",
        "1.2 kB",
        "1.5 MB",
        "174 MB",
        "2.3 GB",
    ]
    assert [duration(x) for x in (0.19, 96, 754, 9000)] == ["0.2 s", "96 s", "12 min 34 s", "2 h 30 min"]
    assert percent(0.0123) == "1.23 %"
    assert fixed(-1.5, 1) == "\u22121.5"


@pytest.mark.parametrize("name", REPORTS)
def test_in_a_browser(name: str, browser: Browser, tmp_path: Path) -> None:
    report = REPORTS[name]()
    assert write_page(tmp_path, report) == tmp_path / PAGE
    assert faults_in_browser(browser, tmp_path / PAGE) == []
