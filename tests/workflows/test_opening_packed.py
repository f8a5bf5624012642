"""A folder that is opened with packed weights is the model that it is with decoded ones, in less memory."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import roundel
from formats.test_kernel_layouts import NARROW
from roundel.errors import ModelError, RecipeError
from roundel.model.bytes_read import bytes_held
from roundel.records.folder import weight_bytes
from roundel.records.manifest import read_manifest
from roundel.runtime.modules import Packed, PackedEmbedding, PackedLinear
from roundel.runtime.replace import packed_modules
from zoo import quantized, zoo_model
from zoo.configs import VOCABULARY

IDS = torch.randint(0, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))
MANY = torch.randint(0, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
SPQR = {"bits": 3, "group_size": 16, "scale_bits": 3, "zero_bits": 3, "tile_rows": 16, "outliers": 0.01}
WHERE: list[tuple[str, str, dict[str, Any]]] = [
    *(("llama", "roundel", {"bits": bits}) for bits in (2, 3, 5, 8)),
    ("llama", "roundel", {"embedding_bits": 4, "head_bits": 6}),
    ("llama", "roundel", {"method": "spqr", "bits": 3, "outliers": 0.01}),
    ("llama", "roundel", {"method": "gptq", "order": "act_order"}),
    ("gpt2", "roundel", {"embedding_bits": 6}),
    ("gemma3", "roundel", {"embedding_bits": 6}),
    ("mixtral", "roundel", {}),
    ("falcon_new", "roundel", {"embedding_bits": 8}),
    ("llama", "spqr", {**SPQR, "method": "spqr", "order": "act_order"}),
    *(("llama", name, {"sym": sym}) for name in ("compressed-tensors", "gptq_v2") for sym in (True, False)),
    ("llama", "compressed-tensors", {"group_size": 64}),  # of 96 inputs: split
    ("llama", "compressed-tensors", {"group_size": -1, "embedding_bits": 4, "head_bits": 4}),
    ("phi3", "compressed-tensors", {"sym": True, "skip": ()}),
    ("phi3", "gptq", {"skip": ()}),
    ("llama", "gptq", {"method": "gptq", "order": "act_order"}),
    ("llama", "awq", {}),
    *(("llama", "auto-round", {"bits": bits, "sym": sym}) for bits, sym in ((3, True), (8, False))),
    *(("llama", "gguf", {"type": kind}) for kind in ("q4_1", "q8_0", "q4_k")),
    ("llama", "gguf", {"type": "q2_k", "embedding_bits": 6, "head_bits": 5}),
    ("phi3", "gguf", {"type": "q5_0"}),
]


def write(model: Path | str, format: str, out: Path, **settings: Any) -> Path:
    given: dict[str, Any] = {"method": "rtn", **settings}
    if "type" not in given and given["method"] != "spqr":
        given = {"group_size": 32, **given}
    if format in ("gptq", "gptq_v2", "awq", "auto-round", "compressed-tensors"):
        given = {"skip": NARROW, **given}
    if given["method"] in ("spqr", "gptq"):
        given |= {"nsamples": 4, "seqlen": 32}
    recipe = roundel.Recipe.create(**given, format=format)
    source = zoo_model(model) if isinstance(model, str) else model
    data = "pydoc" if recipe.needs_calibration else None
    roundel.quantize(source, recipe, output=out, calibration=data, held_out=None)
    return out


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits.float()


def apart(mine: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((mine - wanted).norm() / wanted.norm())


def layers_of(folder: Path) -> set[str]:
    manifest = read_manifest(folder)
    return {layer["name"] for layer in manifest["layers"] if layer.get("bits") is not None}


@pytest.mark.slow("writes models in every format")
@pytest.mark.parametrize(("model", "format", "settings"), WHERE, ids=str)
def test_it_is_the_decoded_model(model: str, format: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = write(model, format, tmp_path / "out", **settings)
    decoded, _ = roundel.load(folder, packed=False)
    packed, _ = roundel.load(folder, packed=True)
    assert not packed_modules(decoded)
    rounded = 1e-4 if decoded.dtype is torch.float32 else 2e-3  # of decoded weights, and between layers
    for ids in (IDS, MANY):  # by kernels, where there are any; by decoding
        assert apart(logits(packed, ids), logits(decoded, ids)) < rounded
    held = {name for name, module in packed.named_modules() if isinstance(module, Packed)}
    experts = {name for name in layers_of(folder) if ".experts." in name}
    assert layers_of(folder) - experts <= held
    assert packed.dtype == decoded.dtype
    assert packed.generation_config.to_dict() == decoded.generation_config.to_dict()
    left = {n: p for n, p in packed.named_parameters() if not n.endswith(("codes", "scale"))}
    theirs = dict(decoded.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in left.items())
    assert not any(t.is_meta for t in (*packed.parameters(), *packed.buffers()))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("gpt2", "roundel", tmp_path_factory.mktemp("tied") / "out", embedding_bits=6)


def test_packed_is_the_default_where_there_are_kernels(tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels in ([], ["portable"]):
        monkeypatch.setattr("roundel.workflows.packed.instruction_sets", lambda kernels=kernels: kernels)
        model, _ = roundel.load(tied)
        assert bool(packed_modules(model)) == bool(kernels)
        assert packed_modules(roundel.load(tied, packed=True)[0])
        assert not packed_modules(roundel.load(tied, packed=False)[0])
    assert not packed_modules(roundel.load(zoo_model("llama"))[0])


def test_a_tied_head_shares_the_memory_of_the_embedding(tied: Path) -> None:
    model, _ = roundel.load(tied, packed=True)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert isinstance(head, PackedLinear)

    def one() -> bool:
        pairs = zip(embedding.packed.parts.values(), head.packed.parts.values(), strict=True)
        return all(mine.data_ptr() == other.data_ptr() for mine, other in pairs)

    wanted = logits(model)
    assert one()
    model.tie_weights()
    assert model.get_output_embeddings() is head
    assert torch.equal(logits(model), wanted)
    # Whatever is done to all of a model's tensors leaves them one.
    model._apply(lambda tensor: tensor.clone())
    assert one()
    assert torch.equal(logits(model), wanted)


def test_a_packed_model_in_memory_is_as_large_as_its_file(tied: Path) -> None:
    model, _ = roundel.load(tied, packed=True)
    # Rows and columns of padding are there, names and shapes are not.
    assert bytes_held(model) == pytest.approx(weight_bytes(tied), rel=0.15)


def test_another_type_of_the_model_leaves_the_integers(tied: Path) -> None:
    model, _ = roundel.load(tied, packed=True)
    decoded, _ = roundel.load(tied, packed=False)
    before = [module.integers() for module in packed_modules(model)]
    model.to(torch.bfloat16)
    decoded.to(torch.bfloat16)
    assert all(m.integers().equals(old) for m, old in zip(packed_modules(model), before, strict=True))
    assert model.get_input_embeddings()(IDS).dtype is torch.bfloat16
    with torch.no_grad():
        assert model(IDS).logits.dtype is torch.bfloat16
    # Weights that are not rounded to bfloat16: no further from the model in float32 than those that are.
    exact = logits(roundel.load(tied, packed=False)[0])
    assert apart(logits(model), exact) < 1.5 * apart(logits(decoded), exact)


def test_fast_is_near_and_not_the_same(tied: Path) -> None:
    exact, fast = (roundel.load(tied, packed=True, mode=mode)[0] for mode in ("exact", "fast"))
    assert all(module.mode == "fast" for module in packed_modules(fast))
    assert 1e-5 < apart(logits(fast), logits(exact)) < 0.05


FOREIGN = {
    "gptq": lambda model, out: quantized.gptq(model, out),
    "gptq in an order": lambda model, out: quantized.gptq(model, out, order=True),
    "gptq of 8 bits": lambda model, out: quantized.gptq(model, out, bits=8, checkpoint_format="gptq_v2"),
    "awq": lambda model, out: quantized.awq(model, out),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_wrote_is_packed_too(name: str, llama: Path, tmp_path: Path) -> None:
    folder = FOREIGN[name](llama, tmp_path / "out")
    decoded, _ = roundel.load(folder, packed=False)
    packed, _ = roundel.load(folder, packed=True)
    assert len(packed_modules(packed)) == 14
    # The decoded weights are rounded to float16.
    assert apart(logits(packed), logits(decoded)) < 5e-3
    assert apart(logits(packed.float()), logits(decoded.float())) < 1e-3


def test_a_layer_in_no_grid_of_ours_stays_decoded(llama: Path, tmp_path: Path) -> None:
    folder = quantized.gptq(llama, tmp_path / "out")
    file, name = folder / "model.safetensors", "model.layers.0.mlp.up_proj"
    tensors = load_file(file)
    tensors[f"{name}.g_idx"][0] = 1  # groups of 31 and 33
    save_file(tensors, file, {"format": "pt"})
    decoded, _ = roundel.load(folder, packed=False)
    packed, _ = roundel.load(folder, packed=True)
    assert isinstance(packed.get_submodule(name), torch.nn.Linear)
    assert len(packed_modules(packed)) == 13
    assert apart(logits(packed), logits(decoded)) < 5e-3


@pytest.mark.parametrize("how", ["dense", "wrong mode", "mode of decoded", "both ways"])
def test_what_cannot_be_is_refused(how: str, tied: Path, llama: Path) -> None:
    with pytest.raises(roundel.RoundelError) as caught:
        if how == "dense":
            roundel.load(llama, packed=True)
        elif how == "wrong mode":
            roundel.load(tied, mode="quick")  # type: ignore[arg-type]
        elif how == "mode of decoded":
            roundel.load(tied, packed=False, mode="fast")
        else:
            roundel.evaluate(tied, packed=True, block_by_block=True)
    words = {
        "dense": (ModelError, "its weights are dense"),
        "wrong mode": (RecipeError, "exact or fast is expected"),
        "mode of decoded": (RecipeError, "leave one of them out"),
        "both ways": (RecipeError, "a block at a time"),
    }
    kind, said = words[how]
    assert type(caught.value) is kind
    assert said in str(caught.value)


def test_a_damaged_folder_is_refused(tied: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tied, tmp_path / "out")
    file = folder / "roundel.safetensors"
    with torch.no_grad():
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        tensors = {n: t for n, t in load_file(file).items() if not n.endswith("h.0.mlp.c_fc.scale")}
        save_file(tensors, file, about)
    with pytest.raises(ModelError, match=r"h\.0\.mlp\.c_fc.* cannot be read"):
        roundel.load(folder, packed=True)


def test_integers_are_no_original(tied: Path) -> None:
    model, tokenizer = roundel.load(tied, packed=True)
    with pytest.raises(ModelError, match="packed integers.*packed=False"):
        roundel.quantize(model, "rtn-w4g128", tokenizer=tokenizer)
    with pytest.raises(ModelError, match="packed integers"):
        roundel.inspect(model)


def test_measuring_and_generating_are_those_of_the_decoded(tied: Path, held_out: Path) -> None:
    original, how = zoo_model("gpt2"), {"text": str(held_out), "window": 64, "limit": 2}
    found = [roundel.compare([tied], original, packed=packed, **how)["models"][0] for packed in (True, False)]
    mine, theirs = (model["quality"]["texts"][0]["kl"]["mean"]["value"] for model in found)
    assert mine == pytest.approx(theirs, rel=1e-3)
    for packed, decoded in zip(found[0]["layers"], found[1]["layers"], strict=True):
        assert packed.pop("error") == pytest.approx(decoded.pop("error"), rel=1e-5)
        assert packed == decoded
    assert found[0]["file_bytes"] == found[1]["file_bytes"]
    alone = [
        roundel.evaluate(tied, reference=original, packed=p, **how).texts[0].perplexity for p in (True, False)
    ]
    assert alone[0].value == pytest.approx(alone[1].value, rel=1e-4)
    texts = [roundel.generate(tied, "The word", max_new_tokens=12, packed=p) for p in (True, False)]
    assert texts[0] == texts[1]
    model, tokenizer = roundel.load(tied, packed=True)
    assert roundel.generate(model, "The word", max_new_tokens=12, tokenizer=tokenizer) == texts[0]


_PEAK = """
import resource, sys
from pathlib import Path
import torch
import roundel
torch.set_num_threads(1)
def anonymous(key):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
import threading, time
peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous("RssAnon"))
        time.sleep(0.002)
roundel.load(sys.argv[2], packed=sys.argv[3] == "True")
before = anonymous("RssAnon")
thread = threading.Thread(target=watch)
thread.start()
model, _ = roundel.load(sys.argv[1], packed=sys.argv[3] == "True")
done = True
thread.join()
print(1024 * (peak - before), sum(t.nbytes for t in (*model.parameters(), *model.buffers())))
"""


@pytest.mark.slow("makes a model of 40 million weights")
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("format", ["roundel", "gptq", "gguf"])
def test_memory_is_that_of_the_packed_model(format: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(zoo_model("llama"))
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 512, 2048, 8
    config.head_dim = config.hidden_size // config.num_attention_heads
    large = tmp_path / "large"
    shutil.copytree(zoo_model("llama"), large)
    AutoModelForCausalLM.from_config(config).save_pretrained(large)
    settings = {"type": "q4_0"} if format == "gguf" else {"sym": True}
    folder = write(large, format, tmp_path / "out", **settings)
    small = write("llama", format, tmp_path / "small", **settings)  # what opening imports is in memory before

    def measured(packed: bool) -> tuple[int, int]:
        command = [sys.executable, "-c", _PEAK, str(folder), str(small), str(packed)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(found[0]), int(found[1])

    peak, size = measured(packed=True)
    theirs, decoded = measured(packed=False)
    assert size < 0.25 * decoded
    assert theirs > 0.8 * decoded
    # What packing takes for a while, some bytes for each weight of a few million, is little beside a real model.
    assert peak < size + 0.2 * decoded
