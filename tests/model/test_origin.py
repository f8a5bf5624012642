"""What is known of an original is what it states itself, and nothing that it does not."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub import Hub, publish
from roundel.model.origin import Licence, Origin, find_origin, hub_id
from roundel.model.place import Place, locate
from roundel.model.source import SourceModel

COMMIT = "1" * 40
SAID = {
    "license": "apache-2.0",
    "language": ["en", "de"],
    "tags": ["code"],
    "pipeline_tag": "text-generation",
}


def known(
    place: Place | None = None, *, name_or_path: str = "", parents: dict[str, str] | None = None
) -> Origin:
    config = SimpleNamespace(architectures=["LlamaForCausalLM"], model_type="llama")
    model = SimpleNamespace(config=config, name_or_path=name_or_path)
    return find_origin(SourceModel("m", model, None, place=place, parents=parents or {}))


def folder(path: Path, about: dict[str, Any] | str | None = None, **files: str) -> Path:
    """A folder that is no model but has what is read of one."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    if about is not None:
        head = about if isinstance(about, str) else yaml.safe_dump(about)
        (path / "README.md").write_text(f"---\n{head}\n---\n# Model\n", encoding="utf-8")
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    return path


def gguf(path: Path, **said: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    for key, value in said.items():
        (writer.add_array if isinstance(value, list) else writer.add_string)(f"general.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_of_the_hub(cache: Path, tmp_path: Path) -> None:
    snapshot = publish(cache, folder(tmp_path / "m", SAID), "acme/model", COMMIT, "main")
    wanted = Origin(
        base_model=("acme/model",),
        relation="quantized",
        licences=(Licence("acme/model", "apache-2.0", read_in="README.md"),),
        language=("en", "de"),
        tags=("code",),
        pipeline_tag="text-generation",
        auto_class="AutoModelForCausalLM",
        own_code=False,
        in_memory=False,
    )
    # By its id, by the path of the snapshot, and in memory.
    assert known(locate("acme/model")) == known(locate(f"acme/model@{COMMIT}")) == wanted
    assert known(Place(str(snapshot), snapshot)) == wanted
    assert known(name_or_path="acme/model") == replace(wanted, in_memory=True)


def test_a_folder_of_this_machine_has_no_place_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "acme" / "model", {**SAID, "base_model": "acme/parent"})
    monkeypatch.chdir(tmp_path)
    found = known(locate("acme/model"))
    assert (found.base_model, found.relation) == ((), "")
    assert found.licences == (Licence("model", "apache-2.0", read_in="README.md"),)
    assert known().licences == ()


def test_another_form_of_a_model_says_of_which(tmp_path: Path) -> None:
    about = {"base_model": ["acme/parent"], "base_model_relation": "quantized"}
    found = known(locate(folder(tmp_path / "m", about)))
    assert (found.base_model, found.relation) == (("acme/parent",), "quantized")


@pytest.mark.parametrize(
    ("about", "files", "wanted"),
    [
        (None, {}, Licence("m")),
        (None, {"LICENSE": "free"}, Licence("m", "other", file="LICENSE")),
        ({}, {"LICENCE.txt": "free"}, Licence("m", "other", file="LICENCE.txt")),
        ({"license": "mit"}, {"LICENSE": "free"}, Licence("m", "mit", file="LICENSE", read_in="README.md")),
        ({"license": ["mit"]}, {}, Licence("m", "mit", read_in="README.md")),
        ({"license": ["mit", "gemma"]}, {}, Licence("m", "other", "mit, gemma", read_in="README.md")),
        ({"license": "My own: v1"}, {}, Licence("m", "other", "My own: v1", read_in="README.md")),
        (
            {"license": "other", "license_name": "l", "license_link": "https://a/b"},
            {},
            Licence("m", "other", "l", "https://a/b", read_in="README.md"),
        ),
        ({"license": None}, {}, Licence("m")),
        ({"license": {"a": 1}}, {}, Licence("m")),
        ({"license": "  "}, {}, Licence("m")),
        ("license: [mit", {}, Licence("m")),
        ("- a list", {}, Licence("m")),
        ("&a [*a]", {}, Licence("m")),
    ],
)
def test_licences(about: Any, files: dict[str, str], wanted: Licence, tmp_path: Path) -> None:
    assert known(locate(folder(tmp_path / "m", about, **files))).licences == (wanted,)


def test_what_cannot_be_read_counts_as_not_stated(tmp_path: Path) -> None:
    for number, content in enumerate((b"\xff\xfe---", b"---\n\xff: 1\n---\n", b"", b"# no metadata")):
        path = folder(tmp_path / str(number))
        (path / "README.md").write_bytes(content)
        assert known(locate(path)).licences == (Licence(str(number)),)
    path = folder(tmp_path / "loop")
    (path / "README.md").mkdir()
    assert known(locate(path)).licences == (Licence("loop"),)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=8)
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=4), PLAIN, max_size=3)
KEYS = ("license", "license_name", "license_link", "language", "tags", "pipeline_tag", "base_model")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(about=st.fixed_dictionaries(dict.fromkeys(KEYS, VALUES), optional={"base_model_relation": VALUES}))
def test_any_metadata_gives_words(about: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.mkdir(exist_ok=True)
    (path / "README.md").write_text(f"---\n{yaml.safe_dump(about)}\n---\n", encoding="utf-8")
    found = known(Place(str(path), path))
    words = [*found.language, *found.tags, found.pipeline_tag, *found.base_model]
    for one in found.licences:
        words += [one.id, one.name, one.link]
    for word in words:
        assert isinstance(word, str)
        assert word == " ".join(word.split())
        assert word.isprintable() or not word.isascii()


def test_languages_and_tags(tmp_path: Path) -> None:
    about = "language: [en, no, Klingon!, zh-Hans]\ntags: [gguf, code, 4-bit, 'arxiv:1', GPTQ, 'base_model:a/b', code]"
    found = known(locate(folder(tmp_path / "m", about)))
    assert found.language == ("en", "no", "zh-Hans")
    assert found.tags == ("code", "arxiv:1")
    assert known(locate(folder(tmp_path / "n", "language: no"))).language == ("no",)


def test_a_gguf_file_speaks_for_itself(tmp_path: Path) -> None:
    folder(tmp_path / "downloads", {"license": "of another model"})
    path = gguf(tmp_path / "downloads" / "m.gguf", license="mit", languages=["en"], tags=["code", "gguf"])
    found = known(locate(path))
    assert found.licences == (Licence("m.gguf", "mit", read_in="m.gguf"),)
    assert (found.language, found.tags, found.base_model) == (("en",), ("code",), ())
    silent = gguf(tmp_path / "downloads" / "silent.gguf")
    assert known(locate(silent)).licences == (Licence("silent.gguf"),)
    told = gguf(tmp_path / "a" / "m.gguf", **{"source.repo_url": "https://huggingface.co/acme/model"})
    assert (known(locate(told)).base_model, known(locate(told)).relation) == (("acme/model",), "quantized")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:60])
    assert known(Place(str(damaged), damaged)).licences == (Licence("damaged.gguf"),)


def test_a_gguf_file_of_the_hub_has_its_card_beside_it(hub: Hub, tmp_path: Path) -> None:
    folder(tmp_path / "repo", {"license": "gemma"})
    gguf(tmp_path / "repo" / "m.gguf")
    hub.add("acme/model-GGUF", tmp_path / "repo", COMMIT)
    place = locate("acme/model-GGUF/m.gguf")
    assert hub_id(place) == "acme/model-GGUF"
    assert known(place).licences == (Licence("acme/model-GGUF", "gemma", read_in="README.md"),)


@pytest.mark.parametrize("both", [True, False])
def test_an_adapter_and_its_base(both: bool, cache: Path, tmp_path: Path) -> None:
    publish(cache, folder(tmp_path / "base", SAID), "acme/base", COMMIT, "main")
    adapter = folder(tmp_path / "adapter", {"license": "cc-by-nc-4.0", "tags": ["poems", "lora"]})
    if both:
        publish(cache, adapter, "acme/adapter", COMMIT, "main")
    named = "acme/adapter" if both else str(adapter)
    found = known(parents={"base": "acme/base", "adapter": named})
    assert found.base_model == (("acme/base", "acme/adapter") if both else ("acme/base",))
    assert found.relation == ("quantized" if both else "finetune")
    assert [one.id for one in found.licences] == ["apache-2.0", "cc-by-nc-4.0"]
    assert found.tags == ("code", "poems")
