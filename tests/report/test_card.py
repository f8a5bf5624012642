"""A card says what a report holds, in Markdown and YAML that mean just that, whatever names come from outside."""

import ast
import copy
import shlex
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import made_report
from markdown_it import MarkdownIt
from markdown_it.token import Token

from roundel.formats.clients import CLIENTS, clients_of
from roundel.formatting import printable
from roundel.recipe import Recipe
from roundel.recipe.loading import recipe_names
from roundel.report.card import render_card
from roundel.report.parts.reproduce import changed_keys, without_folders

SECTIONS = ["Size", "Quality", "How to open it", "How it was made", "Licence"]
MARKS = st.text(st.sampled_from("|`*_[]()<>#\\~$&!:'\"{}-\n\r\t\x1b\x00 é模a"), max_size=24)
ODD = ["---", "no", "null", "1e3", "a\n```\n# b", "a\n---\nb", "[x](javascript:1)"]
OUTSIDE = st.one_of(MARKS, st.text(max_size=24), st.sampled_from(ODD))


def licence(of: str = "made", **stated: str) -> dict[str, str]:
    return {"of": of, "id": "", "name": "", "link": "", "file": "", "read_in": "", **stated}


def origin(**known: Any) -> dict[str, Any]:
    return {
        "base_model": [],
        "relation": "",
        "licences": [licence()],
        "language": [],
        "tags": [],
        "pipeline_tag": "",
        "auto_class": "AutoModelForCausalLM",
        "own_code": False,
        "in_memory": False,
        **known,
    }


def reported(**manifest: Any) -> dict[str, Any]:
    report = made_report()
    report["manifest"] |= {"opens_in": ["transformers", "vLLM"], "origin": origin(), "files": {}, **manifest}
    return report


def read(card: str) -> tuple[dict[str, Any], list[Token]]:
    """The metadata and the body of a card, by other readers than wrote it."""
    found = REGEX_YAML_BLOCK.search(card)
    assert found is not None
    about = yaml.safe_load(found[2])
    return about, MarkdownIt("commonmark").enable("table").parse(card[found.end() :])


def headings(tokens: list[Token], level: str) -> list[str]:
    return [
        shown(tokens[n + 1])
        for n, token in enumerate(tokens)
        if (token.type, token.tag) == ("heading_open", level)
    ]


def shown(token: Token) -> str:
    """What a reader sees of a line."""
    return "".join(child.content for child in token.children or [])


def tables(tokens: list[Token]) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    for number, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(shown(tokens[number + 1]))
    return found


def said(tokens: list[Token]) -> str:
    return "\n".join(shown(token) for token in tokens if token.type == "inline")


def fences(tokens: list[Token], language: str) -> list[str]:
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def as_line(text: str) -> str:
    return " ".join(printable(text).split())


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(folder=OUTSIDE, source=OUTSIDE, text=OUTSIDE, of=OUTSIDE, name=OUTSIDE, tag=OUTSIDE)
def test_names_from_outside_are_text_and_nothing_else(
    folder: str, source: str, text: str, of: str, name: str, tag: str
) -> None:
    report = reported(
        source=source,
        opens_in=["transformers", text],
        origin=origin(licences=[licence(of, id="other", name=name, read_in=of)], tags=[tag]),
    )
    report["quality"]["texts"] = [{**report["quality"]["texts"][0], "text": text, "convention": name}]
    wanted = read(render_card(reported(), "out"))
    about, tokens = read(render_card(report, folder))
    # The same headings, and tables of as many columns, as with names that mean nothing.
    assert headings(tokens, "h2") == headings(wanted[1], "h2") == SECTIONS
    assert headings(tokens, "h1") == [as_line(folder)]
    assert [len(row) for table in tables(tokens) for row in table][:6] == [3] * 6
    assert all(len(row) == len(table[0]) for table in tables(tokens) for row in table)
    inside = [child for token in tokens for child in token.children or []]
    assert not [child for child in inside if child.type in ("html_inline", "link_open", "image")]
    assert [
        token.content.startswith("<!-- roundel-card-") for token in tokens if token.type == "html_block"
    ] == [True]
    assert tag in about["tags"]
    assert about.get("license_name", "") == name
    assert without_folders(text).strip() == "" or as_line(without_folders(text)) in said(tokens)
    (code,) = fences(tokens, "python")
    literals = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    start = "./" if folder.startswith(("-", "~")) else ""
    assert printable(start + folder) in literals
    command = next(code for code in fences(tokens, "bash") if code.startswith("roundel quantize"))
    assert shlex.split(command)[:2] == ["roundel", "quantize"]
    assert shlex.split(command)[3:] == ["-o", printable(folder), "--recipe", "recipe.yaml"]


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipe_in_it_is_the_recipe(name: str) -> None:
    recipe = Recipe.load(name)
    report = reported(recipe=recipe.model_dump(mode="json"))
    (text,) = fences(read(render_card(report, "out"))[1], "yaml")
    again = Recipe.create(**yaml.safe_load(text))
    words = {"name": "", "description": ""}
    assert again.model_copy(update=words) == recipe.model_copy(update=words)


def test_keys_of_another_version_are_shown() -> None:
    recipe = Recipe(method="rtn").model_dump(mode="json") | {"twirl": 3}
    assert changed_keys(recipe)["twirl"] == 3
    assert (
        changed_keys({**recipe, "method": "of tomorrow"}).items()
        >= {"method": "of tomorrow", "twirl": 3}.items()
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("/home/me/c4.jsonl: 5 documents", "c4.jsonl: 5 documents"),
        ("~/data/a.txt:10,./b.txt", "a.txt:10,b.txt"),
        (r"C:\Users\me\a.txt", "a.txt"),
        ("NeelNanda/pile-10k", "NeelNanda/pile-10k"),
        ("1/2 of https://host/a/b", "1/2 of https://host/a/b"),
    ],
)
def test_folders_of_this_machine_are_left_out(words: str, wanted: str) -> None:
    assert without_folders(words) == wanted


def test_what_is_measured_stands_in_it_with_its_interval() -> None:
    report = reported()
    text = report["quality"]["texts"][0]
    rows = next(table for table in tables(read(render_card(report, "out"))[1]) if table[0][0] == "text")
    row = dict(zip(rows[0], rows[1], strict=True))
    for column, figure in (
        ("perplexity of the original", text["reference_perplexity"]),
        ("of this model", text["perplexity"]),
    ):
        value, low, high = (float(word.strip("[,]")) for word in row[column].split())
        assert [value, low, high] == pytest.approx([figure[k] for k in ("value", "low", "high")], abs=5e-4)
    report = {**report, "quality": None, "no_quality": "it was not asked for"}
    assert "Not measured: it was not asked for." in said(read(render_card(report, "out"))[1])


def test_bits_of_the_whole_come_first() -> None:
    report = reported()
    rows = tables(read(render_card(report, "out"))[1])[0]
    assert [row[0] for row in rows[1:3]] == ["Bits per parameter", "Bits per weight"]
    assert float(rows[1][1]) == pytest.approx(report["manifest"]["bits_per_parameter"], abs=5e-4)
    assert float(rows[2][1]) == pytest.approx(report["manifest"]["bits_per_weight"], abs=5e-4)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize("repo", [None, "acme/small"])
def test_every_client_is_given_its_command(client: Any, repo: str | None) -> None:
    files = {"b.gguf": {}, "a 1.gguf": {}, "model.safetensors": {}}
    report = reported(opens_in=[f"recent {client.known_by[0]} on a GPU", "another"], files=files)
    about, tokens = read(render_card(report, "out put", repo))
    (rows,) = (table for table in tables(tokens) if table[0][0] == "opens in")
    assert [row[0] for row in rows[1:3]] == [f"recent {client.known_by[0]} on a GPU", "another"]
    assert client.name in headings(tokens, "h3")
    assert "Roundel" in headings(tokens, "h3")  # which opens everything that it wrote
    code = "\n".join(fences(tokens, client.language))
    assert "{" not in code.replace("{auto", "")
    name = "a 1.gguf" if client.ending else (repo or "out put")
    assert name in code
    assert ("hf download acme/small" in code) == bool(repo and client.local)
    assert about["library_name"] == next(
        (c.library for c in clients_of(client.known_by[0]) if c.library), "roundel"
    )
    assert about["quantized_by"] == ("acme" if repo else "roundel")


def test_how_it_was_made_is_said_of_every_kind_of_source() -> None:
    def made(origin_: dict[str, Any], **original: Any) -> str:
        report = reported(origin=origin_, source="acme/x@v1")
        report["manifest"]["original"] |= original
        tokens = read(render_card(report, "out"))[1]
        (code,) = [
            code
            for language in ("bash", "python")
            for code in fences(tokens, language)
            if code.startswith(("roundel quantize", "roundel.quantize"))
        ]
        return code.strip()

    end = "-o out --recipe recipe.yaml"
    assert made(origin(base_model=["acme/x"]), commit="1" * 40).startswith(
        f"roundel quantize acme/x@v1 {end}"
    )
    assert made(origin()).startswith(f"roundel quantize x@v1 {end}")
    both = origin(base_model=["acme/base", "acme/x"])
    assert f"acme/x@v1 {end} --base acme/base@main" in made(both, base="acme/base@main", adapter="acme/x@v1")
    assert f"x@v1 {end} --base local" in made(origin(), base="/home/me/local", adapter="/home/me/x@v1")
    assert "--trust-remote-code" in made(origin(own_code=True))
    in_memory = made(origin(in_memory=True, base_model=["acme/x"]))
    assert in_memory.startswith("roundel.quantize(model, \"recipe.yaml\", output='out'")


def test_a_model_with_code_of_its_own_is_opened_with_it() -> None:
    report = reported(origin=origin(own_code=True, auto_class="AutoModelForMultimodalLM"))
    tokens = read(render_card(report, "out"))[1]
    assert (
        "AutoModelForMultimodalLM.from_pretrained('out', trust_remote_code=True)"
        in fences(tokens, "python")[0]
    )
    assert any("vllm serve out --trust-remote-code" in code for code in fences(tokens, "bash"))


@pytest.mark.parametrize(
    ("licences", "files", "wanted"),
    [
        ([licence()], {}, ("unknown", None, None)),
        ([], {}, ("unknown", None, None)),
        ([licence(id="mit", file="LICENSE")], {"LICENSE"}, ("mit", None, None)),
        ([licence(id="other", file="LICENSE")], {"LICENSE"}, ("other", None, "LICENSE")),
        ([licence("a/b", id="other", name="own", link="LICENSE.md")], {}, ("other", "own", "a/b")),
        (
            [licence("a/b", id="other", name="own", link="LICENSE.md")],
            {"LICENSE.md"},
            ("other", "own", "LICENSE.md"),
        ),
        ([licence("folder", id="other", name="own", link="LICENSE.md")], {}, ("other", "own", None)),
        ([licence("a/b", id="mit"), licence("a/c", id="mit")], {}, ("mit", None, None)),
        ([licence("a/b", id="mit"), licence("a/c", id="gemma")], {}, ("other", "mit and gemma", None)),
        ([licence("a/b", id="mit"), licence("a/c")], {}, ("unknown", None, None)),
    ],
)
def test_no_licence_is_invented(licences: list[dict[str, str]], files: Any, wanted: tuple[Any, ...]) -> None:
    report = reported(origin=origin(licences=licences), files={name: {} for name in files})
    about, tokens = read(render_card(report, "out"))
    found = [about.get(key) for key in ("license", "license_name", "license_link")]
    if wanted[2] == "a/b":
        assert found.pop() == "https://huggingface.co/a/b/blob/main/LICENSE.md"
        wanted = wanted[:2]
    assert found == list(wanted)
    assert all(one["of"] in said(tokens) for one in licences)


def test_the_same_report_gives_the_same_card_and_is_left_alone() -> None:
    report = reported()
    before = copy.deepcopy(report)
    assert render_card(report, "out", "a/b") == render_card(report, "out", "a/b")
    assert report == before


def test_an_old_manifest_will_do() -> None:
    """Of a version that knew of no card."""
    about, tokens = read(render_card(made_report(), "out"))
    assert headings(tokens, "h2") == SECTIONS
    assert about["license"] == "unknown"
    assert "base_model" not in about
