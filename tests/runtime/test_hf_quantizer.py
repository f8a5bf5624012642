"""transformers opens folders in our own container once Roundel is imported, into packed modules; else never."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CompressedTensorsConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.trainer_utils import validate_quantization_for_training

import roundel
from hub import Hub
from roundel.activations.attach import attached
from roundel.errors import ModelError, OutputError
from roundel.formats import shards
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.runtime.modules import Packed, PackedEmbedding, PackedLinear
from roundel.workflows.hf_quantizer import RoundelConfig
from zoo.configs import CONFIGS

FILE = "roundel.safetensors"
CONFIGS_WRITTEN = ("config.json", "generation_config.json")
RTN = {"method": "rtn", "bits": 4, "group_size": 16}
IDS = torch.arange(9)[None]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A folder of an untrained model of an architecture, quantized as a recipe says; each is made once."""
    made: dict[str, Path] = {}

    def folder(name: str, **recipe: object) -> Path:
        key = f"{name} {sorted(recipe.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("quantized") / name
            kind, values = CONFIGS[name]
            torch.manual_seed(0)
            roundel.quantize(
                AutoModelForCausalLM.from_config(kind(**values)),
                roundel.Recipe(format="roundel", **{**RTN, **recipe}),
                output=made[key],
                held_out=None,
            )
        return made[key]

    return folder


def open_packed(folder: Path | str, **options: object) -> torch.nn.Module:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits


def same_integers(one: Path, other: Path) -> bool:
    a, b = roundel.read_integers(one), roundel.read_integers(other)
    return sorted(a) == sorted(b) and all(a[name].equals(b[name]) for name in a)


def packed_in(model: torch.nn.Module) -> dict[str, Packed]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Packed)}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("llama", {}),  # a head of its own
        ("llama", {"method": "spqr", "bits": 3, "outliers": 0.01, "nsamples": 4, "seqlen": 32}),
        ("llama", {"bits": 8, "sym": True, "group_size": -1, "head_bits": 8}),
        ("opt", {"embedding_bits": 8}),  # tied, biases
        ("gpt2", {"embedding_bits": 4}),  # Conv1D, tied
        ("gemma3", {"embedding_bits": 8}),  # a scaled embedding
        ("falcon_new", {}),  # Linears of a class of its own
        ("mixtral", {}),  # experts in one tensor
    ],
    ids=str,
)
def test_logits_are_those_of_the_decoded_model_and_saving_keeps_the_integers(
    name: str, recipe: dict, make: Make, tmp_path: Path
) -> None:
    if recipe.get("method") == "spqr":
        recipe = {**recipe, "round_zero": False, "scale_bits": 3, "zero_bits": 3}
    folder = make(name, **recipe)
    model = open_packed(folder)
    assert packed_in(model)
    wanted = logits(roundel.load(folder, packed=False)[0])
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)
    assert type(model).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]

    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    assert same_integers(folder, saved)
    torch.testing.assert_close(logits(open_packed(saved)), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(roundel.load(saved, packed=False)[0]), wanted, atol=1e-6, rtol=1e-6)
    about = json.loads((saved / "config.json").read_text())
    assert about["quantization_config"]["weights"] == FILE
    assert "transformers_weights" not in about


def test_a_tied_head_shares_the_packed_embedding_in_memory_and_on_disk(make: Make, tmp_path: Path) -> None:
    model = open_packed(make("gpt2", embedding_bits=4))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert isinstance(head, PackedLinear)
    assert embedding.codes.data_ptr() == head.codes.data_ptr()
    model.tie_weights()
    copied = copy.deepcopy(model)
    assert copied.get_output_embeddings().codes.data_ptr() == copied.get_input_embeddings().codes.data_ptr()
    copied.save_pretrained(tmp_path / "saved")
    assert "lm_head.codes" not in load_file(tmp_path / "saved" / FILE)
    assert torch.equal(logits(open_packed(tmp_path / "saved")), logits(model))


def test_a_copy_and_a_pickle_save_themselves(make: Make, tmp_path: Path) -> None:
    model = open_packed(make("llama"))
    for number, twin in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        twin.get_submodule("model.norm").weight.data.mul_(2)
        twin.save_pretrained(tmp_path / str(number))
        again = open_packed(tmp_path / str(number))
        assert torch.equal(again.model.norm.weight, 2 * model.model.norm.weight)


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_what_roundel_loads_packed_saves_itself_alike(
    name: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(name, embedding_bits=4)
    model, _ = roundel.load(folder, packed=True)
    model.save_pretrained(tmp_path)
    assert same_integers(folder, tmp_path)
    torch.testing.assert_close(logits(open_packed(tmp_path)), logits(model), atol=1e-6, rtol=1e-6)
    monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "roundel")  # as without the import
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_quantized_activations_run_and_go_along(name: str, make: Make, tmp_path: Path) -> None:
    folder = make(name, act_bits=8)
    model = open_packed(folder)
    assert attached(model).enabled
    wanted = logits(roundel.load(folder, packed=False)[0])
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    with attached(model).switched(on=False):
        assert not torch.equal(logits(model), wanted)
    before = logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(open_packed(tmp_path / "saved")), before)
    (tmp_path / "saved" / "roundel_activations.json").unlink()
    with pytest.raises(ModelError, match="config.json says that activations are quantized"):
        open_packed(tmp_path / "saved")


def test_several_files_have_an_index(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    folder = make("llama", bits=5)
    assert not (folder / FILE).exists()
    assert (folder / "roundel.safetensors.index.json").is_file()
    model = open_packed(folder)
    torch.testing.assert_close(
        logits(model), logits(roundel.load(folder, packed=False)[0]), atol=1e-5, rtol=1e-5
    )
    index = json.loads((folder / "roundel.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("roundel-0*")}
    older = shutil.copytree(folder, tmp_path / "older")
    (older / "roundel.safetensors.index.json").unlink()
    about = json.loads((older / "config.json").read_text())
    del about["quantization_config"]
    (older / "config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="lack their index"):
        open_packed(older, quantization_config=RoundelConfig())
    roundel.load(older, packed=True)[0].save_pretrained(tmp_path / "newer")
    assert torch.equal(logits(open_packed(tmp_path / "newer")), logits(model))
    model.save_pretrained(tmp_path / "saved", max_shard_size="150KB")
    assert len(list((tmp_path / "saved").glob("roundel-0*"))) > 1
    assert same_integers(folder, tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")  # what is left of several files goes
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {FILE, *CONFIGS_WRITTEN}
    assert same_integers(folder, tmp_path / "saved")
    assert torch.equal(logits(open_packed(tmp_path / "saved")), logits(model))


@pytest.mark.parametrize(
    "options", [{"device_map": "cpu"}, {"device_map": "auto"}, {"dtype": "auto"}], ids=str
)
def test_options_of_transformers(options: dict, make: Make) -> None:
    folder = make("llama")
    assert torch.equal(logits(open_packed(folder, **options)), logits(open_packed(folder)))


def test_bfloat16(make: Make) -> None:
    folder = make("opt", embedding_bits=8)
    model = open_packed(folder, dtype=torch.bfloat16)
    assert model.dtype is torch.bfloat16
    found, wanted = logits(model), logits(open_packed(folder))
    assert found.dtype is torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.03 * wanted.abs().max()
    scales = {name: module.scale for name, module in packed_in(model).items()}
    assert all(scale.dtype is torch.float16 for scale in scales.values())  # as they are stored
    model.to(torch.float32)
    assert all(torch.equal(packed_in(model)[name].scale, scale) for name, scale in scales.items())


def test_nothing_is_decoded_on_the_way(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("opt", embedding_bits=8)
    monkeypatch.delattr(QuantizedWeight, "dequantize")
    open_packed(folder).save_pretrained(tmp_path)


def test_the_base_model_and_generation(make: Make) -> None:
    folder = make("llama")
    model = open_packed(folder)
    base = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        hidden = base(IDS).last_hidden_state
        assert torch.equal(hidden, model.model(IDS).last_hidden_state)
    told = model.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(
        told, roundel.load(folder, packed=False)[0].generate(IDS, max_new_tokens=4, do_sample=False)
    )


def test_a_folder_of_before_opens_with_the_config_as_argument(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    model = open_packed(folder)
    about = json.loads((folder / "config.json").read_text())
    del about["quantization_config"]
    (tmp_path / FILE).symlink_to(folder / FILE)
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    older = open_packed(tmp_path, quantization_config=RoundelConfig())
    assert torch.equal(logits(older), logits(model))


def test_what_cannot_be_is_said(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    model = open_packed(folder)
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        validate_quantization_for_training(model)
    with pytest.raises(ModelError, match="packed=False"):
        model.dequantize()
    with pytest.raises(ModelError, match="random values where Roundel is not imported"):
        type(model).save_pretrained(model, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.safetensors"))
    absent = copy.deepcopy(model)
    absent.model.norm.to("meta")
    with pytest.raises(OutputError, match=r"model\.norm\.weight is not in memory"):
        absent.save_pretrained(tmp_path / "other")
    with pytest.raises(OutputError, match="variant is not for a packed model"):
        model.save_pretrained(tmp_path / "other", variant="fp16")
    (tmp_path / "dense").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "dense" / "model.safetensors")
    with pytest.raises(OutputError, match="transformers would load instead"):
        model.save_pretrained(tmp_path / "dense")
    assert not (tmp_path / "dense" / FILE).exists()
    with pytest.raises(ModelError, match="leave state_dict out"):
        config = AutoConfig.from_pretrained(folder)
        type(model).from_pretrained(None, config=config, state_dict=model.state_dict())
    with pytest.raises(ModelError, match="which this roundel does not know"):
        RoundelConfig(bits=4)


def test_a_tensor_that_is_missing_is_no_random_one(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    for gone in ("model.norm.weight", "model.layers.0.mlp.up_proj.codes"):
        damaged = tmp_path / gone
        damaged.mkdir()
        (damaged / "config.json").write_bytes((folder / "config.json").read_bytes())
        with safe_open(folder / FILE, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(folder / FILE)
        del tensors[gone]
        save_file(tensors, damaged / FILE, metadata)
        with pytest.raises(ModelError, match="a whole folder"):
            AutoModelForCausalLM.from_pretrained(damaged)


def test_from_the_hub_with_all_that_it_needs(make: Make, hub: Hub, cache: Path) -> None:
    folder = make("llama", act_bits=8)
    hub.add("acme/small", folder, "c" * 40)
    model = open_packed("acme/small", cache_dir=cache)
    assert "roundel_activations.json" in hub.fetched
    assert attached(model).enabled
    assert torch.equal(logits(model), logits(open_packed(folder)))


def test_in_a_folder_inside(make: Make, tmp_path: Path) -> None:
    folder = make("llama", act_bits=8)
    shutil.copytree(folder, tmp_path / "inner")
    model = open_packed(tmp_path, subfolder="inner")
    assert torch.equal(logits(model), logits(open_packed(folder)))


@torch.no_grad()
def test_a_compiled_step_is_the_eager_one(make: Make) -> None:
    model = open_packed(make("gpt2", embedding_bits=4))
    wanted = logits(model)
    compiled = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IDS).logits, wanted, atol=1e-6, rtol=1e-6)


def test_other_formats_stay_transformers_business(llama: Path, make: Make) -> None:
    with pytest.raises(ValueError, match="passing a CompressedTensorsConfig"):
        AutoModelForCausalLM.from_pretrained(make("llama"), quantization_config=CompressedTensorsConfig())
    assert not packed_in(AutoModelForCausalLM.from_pretrained(llama))


_OPEN = "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1]).model.layers[0].mlp.up_proj).__name__)"
_TRANSFORMERS = "from transformers import AutoModelForCausalLM"


@pytest.mark.slow("three processes that import everything anew")
def test_the_import_decides_and_its_place_does_not(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    open_packed(folder).save_pretrained(tmp_path / "saved")

    def run(*lines: str, of: tuple[Path, ...] = (folder,)) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "\n".join(("import sys", *lines)), *map(str, of)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    light = "import roundel; assert not {'torch', 'transformers'} & sys.modules.keys()"
    for lines in (
        (light, _TRANSFORMERS),
        (_TRANSFORMERS, "import roundel"),
        ("import transformers", "import roundel", _TRANSFORMERS),
    ):
        found = run(*lines, _OPEN)
        assert found.stdout.strip() == "PackedLinear", found.stderr
    # One process for both: the first open fails, and so does the second, whatever the first left.
    found = run(
        _TRANSFORMERS,
        "try:",
        f"    {_OPEN}",
        "except OSError as error: print(error, file=sys.stderr)",
        "sys.argv[1] = sys.argv[2]",
        _OPEN,
        of=(folder, tmp_path / "saved"),
    )
    assert found.returncode != 0
    assert found.stderr.count("no file named model.safetensors") >= 2
    assert found.stdout == ""
