"""The model that comes out is the one that went in: files beside the weights byte for byte, a config with few changes.

The oracles are the source's own bytes, and `tokenizers`, which reads tokenizer.json without transformers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import roundel
from roundel.errors import ModelError
from roundel.formats.companions import Companions
from roundel.formats.config_file import finish_config
from zoo import zoo_model

FORMATS = ("compressed-tensors", "dense", "roundel")
RTN = roundel.Recipe(method="rtn", group_size=32, sym=True)
TEXT = "Once<|end_story|> x, <unk>  two  blanks\n\n\tжзя 文字 עברית é e\u0301 😀"
# Files that people's folders hold; some are copied, some are no part of the model.
COPIED = {
    "special_tokens_map.json": '{"unk_token": "<unk>"}',
    "added_tokens.json": "{}",
    "vocab.json": '{"a": 0}',
    "merges.txt": "#version: 0.2\n",
    "tokenizer.model": "pieces",
    "tekken.json": "{}",
    "chat_template.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "generation_config.json": '{\n    "temperature": 0.6,\n    "do_sample": true,\n    "some_client_key": 1\n}',
    "preprocessor_config.json": '{"image_processor_type": "CLIPImageProcessor"}',
    "params.json": '{"of": "another client"}',
    "LICENSE": "Free for all.\r\n",
    "NOTICE.txt": "Thanks.",
    "USE_POLICY.md": "Be kind.",
}
LEFT = {
    "README.md": "about the original",
    "thesis.pdf": "no part of the model",
    "notes.txt": "no part of the model",
    "trainer_state.json": "{}",
    "quantize_config.json": "{}",
    "optimizer.pt": "x",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people have them, with a tokenizer that is not what transformers 5 would write."""
    folder = tmp_path_factory.mktemp("sources") / "model"
    shutil.copytree(zoo_model("llama"), folder)
    for name, words in {**COPIED, **LEFT}.items():
        (folder / name).write_bytes(words.encode())
    path = folder / "tokenizer.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    number = max(token["id"] for token in about["added_tokens"])
    about["added_tokens"][-1] |= {"id": number, "lstrip": True, "rstrip": False}
    about["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(about, indent=1), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"a_key_of_others": [1, 2], "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_files_are_copied_byte_for_byte(format: str, stream: bool, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    roundel.quantize(source, RTN.with_settings(format=format), output=out, stream=stream, held_out=None)
    for name in (*COPIED, "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert not {path.name for path in out.iterdir()} & LEFT.keys()


def test_ids_are_the_same_for_every_client(source: Path, tmp_path: Path) -> None:
    """From a folder, and from a model and tokenizer in memory that were opened from it."""
    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    roundel.quantize(source, RTN, output=tmp_path / "path", held_out=None)
    roundel.quantize(model, RTN, output=tmp_path / "memory", tokenizer=tokenizer, held_out=None)
    for out in (tmp_path / "path", tmp_path / "memory"):
        assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
        for special in (True, False):
            alone = [tokenizers.Tokenizer.from_file(str(f / "tokenizer.json")) for f in (source, out)]
            assert len({tuple(t.encode(TEXT, add_special_tokens=special).ids) for t in alone}) == 1
            opened = [AutoTokenizer.from_pretrained(f) for f in (source, out)]
            assert len({tuple(t(TEXT, add_special_tokens=special)["input_ids"]) for t in opened}) == 1


def test_a_model_in_memory_has_the_settings_that_it_has_there(source: Path, tmp_path: Path) -> None:
    """And no tokenizer, where none was given."""
    model = AutoModelForCausalLM.from_pretrained(source)
    model.generation_config.temperature = 0.125
    roundel.quantize(model, RTN, output=tmp_path / "out", held_out=None)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert written["temperature"] == 0.125
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "LICENSE").read_bytes() == (source / "LICENSE").read_bytes()
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_a_tokenizer_without_known_files_goes_along(llama: Path, tmp_path: Path) -> None:
    """Files that transformers opens no tokenizer from are read by other clients."""
    source = Path(shutil.copytree(llama, tmp_path / "source"))
    for path in source.glob("tokenizer*"):
        path.unlink()
    (source / "tekken.json").write_text("{}", encoding="utf-8")
    roundel.quantize(source, RTN, output=tmp_path / "out", held_out=None)
    assert (tmp_path / "out" / "tekken.json").is_file()


def test_a_tokenizer_that_was_changed_is_written_as_it_is(source: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["Once"])
    assert tokenizer(TEXT)["input_ids"] != AutoTokenizer.from_pretrained(source)(TEXT)["input_ids"]
    roundel.quantize(source, RTN, output=tmp_path / "out", tokenizer=tokenizer, held_out=None)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    template = AutoTokenizer.from_pretrained(source)
    template.chat_template = "another"
    roundel.quantize(source, RTN, output=tmp_path / "other", tokenizer=template, held_out=None)
    assert AutoTokenizer.from_pretrained(tmp_path / "other").chat_template == "another"


def test_one_that_cannot_be_written_is_refused_before_the_work(llama: Path, tmp_path: Path) -> None:
    class Forgetful:
        """Saves the plain one, whatever it does itself."""

        name_or_path = ""
        all_special_tokens = ("<s>",)

        def __init__(self) -> None:
            self.own = AutoTokenizer.from_pretrained(llama)

        def __call__(self, text: str, **options: Any) -> Any:
            found = self.own(text, **options)
            found["input_ids"] = found["input_ids"][::-1]
            return found

        def save_pretrained(self, folder: str) -> None:
            self.own.save_pretrained(folder)

    with pytest.raises(ModelError, match="Forgetful, written and opened again, gives other ids"):
        Companions.find([], Forgetful(), False)
    with pytest.raises(ModelError, match="Forgetful"):
        roundel.quantize(llama, RTN, output=tmp_path / "out", tokenizer=Forgetful(), held_out=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe", "gpt_neox", "opt", "phi3", "falcon_new"])
def test_only_what_quantizing_changes_is_changed_in_the_config(
    name: str, format: str, stream: bool, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(zoo_model(name), tmp_path / "source"))
    about = json.loads((source / "config.json").read_text(encoding="utf-8"))
    about |= {"a_key_of_others": {"x": [1]}, "transformers_version": "4.44.0"}
    (source / "config.json").write_text(json.dumps(about), encoding="utf-8")
    out = tmp_path / "out"
    roundel.quantize(source, RTN.with_settings(format=format), output=out, stream=stream, held_out=None)
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    older = {"rope_theta", "rope_scaling", "torch_dtype", "rope_local_base_freq", "partial_rotary_factor"}
    older |= {"rotary_emb_base", "rotary_pct"}
    changed = {key for key in written.keys() | about.keys() if written.get(key) != about.get(key)}
    assert changed <= older | (
        {"quantization_config"} if format in ("compressed-tensors", "roundel") else set()
    )
    assert all(key not in about for key in changed)
    wanted, found = (AutoConfig.from_pretrained(folder).to_dict() for folder in (source, out))
    for config in (wanted, found):
        config.pop("quantization_config", None)
        config.pop("_name_or_path")
    assert found.keys() - wanted.keys() <= older
    assert {key: found[key] for key in wanted} == wanted
    if name in ("phi3", "gpt_neox", "llama"):
        assert "rope_theta" in written


def test_names_of_older_versions_stand_beside_the_new_ones(tmp_path: Path) -> None:
    source = Path(shutil.copytree(zoo_model("llama"), tmp_path / "source"))
    about = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        about.pop(key, None)
    yarn = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    about |= {"dtype": "float32", "rope_parameters": yarn}
    (source / "config.json").write_text(json.dumps(about), encoding="utf-8")
    roundel.quantize(source, RTN, output=tmp_path / "out", held_out=None)
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written["torch_dtype"] == "float32"
    assert written["rope_theta"] == 5000.0
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert written["rope_parameters"] == yarn
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == yarn


def test_the_older_form_of_a_source_stays(tmp_path: Path) -> None:
    source = Path(shutil.copytree(zoo_model("llama"), tmp_path / "source"))
    about = json.loads((source / "config.json").read_text(encoding="utf-8"))
    dtype = about.pop("dtype", None) or about.pop("torch_dtype")
    about.pop("rope_parameters", None)
    about |= {"rope_theta": 1234.0, "rope_scaling": None, "torch_dtype": dtype}
    (source / "config.json").write_text(json.dumps(about), encoding="utf-8")
    recipe = RTN.with_settings(format="dense")
    roundel.quantize(source, recipe, output=tmp_path / "out", held_out=None)
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert written == about


def test_a_model_in_memory_gets_the_config_that_it_has(llama: Path, tmp_path: Path) -> None:
    """What was changed in memory stands in the file; there is no file of an original that was made in memory."""
    opened = AutoModelForCausalLM.from_pretrained(llama)
    opened.config.rms_norm_eps = 0.125
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llama))
    made.config._name_or_path = ""
    for name, model in (("opened", opened), ("made", made)):
        roundel.quantize(model, RTN, output=tmp_path / name, held_out=None)
        found = AutoConfig.from_pretrained(tmp_path / name)
        assert found.rms_norm_eps == model.config.rms_norm_eps
        written = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
        assert written["torch_dtype"] == written["dtype"]
        assert written["rope_theta"] == found.rope_parameters["rope_theta"]


def test_a_config_that_would_say_something_else_is_refused(llama: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(llama)
    shutil.copy(llama / "config.json", tmp_path)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 7.0}
    finish_config(tmp_path, llama, config, False)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 7.0
