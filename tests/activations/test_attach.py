import copy
import json
from pathlib import Path

import pytest
import torch

import roundel
from roundel.activations.attach import FILE, ActivationQuantizer, attach_saved, attached
from roundel.activations.rounding import quantize_vectors
from roundel.activations.scheme import Activations, ActivationScheme, StaticGrid
from roundel.errors import ModelError

BOTH = Activations(ActivationScheme(8, False, static=False), ActivationScheme(8, True, static=False))
STATIC = Activations(ActivationScheme(8, False, static=True))
LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
IDS = torch.arange(24)[None]


@torch.no_grad()
def test_inputs_are_rounded_only_while_enabled_and_only_there(llama: Path, load_model) -> None:
    model, _ = load_model(llama)
    quantizer = ActivationQuantizer(model, LAYERS, Activations(BOTH.inputs))
    seen: dict[str, torch.Tensor] = {}
    for name in (*LAYERS, "model.layers.0.self_attn.k_proj"):
        hook = lambda module, args, name=name: seen.__setitem__(name, args[0])  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(hook)
    plain = model(IDS).logits
    q, k = seen[LAYERS[0]], seen["model.layers.0.self_attn.k_proj"]
    assert torch.equal(q, k)
    with quantizer.switched(on=True):
        rounded = model(IDS).logits
    assert torch.equal(seen[LAYERS[0]], quantize_vectors(q, BOTH.inputs))
    assert torch.equal(seen["model.layers.0.self_attn.k_proj"], k)
    assert not torch.equal(rounded, plain)
    assert torch.equal(model(IDS).logits, plain)
    quantizer.enabled = True
    quantizer.detach()
    assert torch.equal(model(IDS).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("grids", [BOTH, STATIC], ids=["token and kv", "static"])
def test_a_folder_brings_it_back(grids: Activations, llama: Path, load_model, tmp_path: Path) -> None:
    model, _ = load_model(llama)
    quantizer = ActivationQuantizer(model, LAYERS, grids)
    if grids is STATIC:
        quantizer.static = {name: StaticGrid(0.0123456789, -3) for name in LAYERS}
    quantizer.save(tmp_path)
    quantizer.enabled = True
    again, _ = load_model(llama)
    attached = attach_saved(again, tmp_path)
    assert attached.enabled
    assert attached.static == quantizer.static
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_model_knows_what_is_attached(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    assert attached(model) is None
    quantizer = ActivationQuantizer(model, LAYERS, BOTH)
    assert attached(model) is quantizer
    assert quantizer.summary == ""
    quantizer.enabled = True
    assert quantizer.summary == (
        "inputs of 2 Linears 8 bit asym, per token; KV cache 8 bit sym, per token and head"
    )
    assert torch.equal(copy.deepcopy(model)(IDS).logits, model(IDS).logits)
    with pytest.raises(ModelError, match="in memory is quantized already"):
        roundel.quantize(model, "rtn-w4g128", tokenizer=tokenizer)
    quantizer.detach()
    assert attached(model) is None


def test_nothing_saved_nothing_attached(llama: Path, load_model, tmp_path: Path) -> None:
    model, _ = load_model(llama)
    assert attach_saved(model, tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("kv"),
        lambda content: content.update(layers=["model.layers.7.no_such"]),
        lambda content: content.update(inputs={"bits": 8}),
        lambda content: content["static"].popitem(),
        None,
    ],
)
def test_damaged_files_are_one_error(damage, llama: Path, load_model, tmp_path: Path) -> None:
    model, _ = load_model(llama)
    quantizer = ActivationQuantizer(model, LAYERS, STATIC)
    quantizer.static = {name: StaticGrid(0.5, 0) for name in LAYERS}
    quantizer.save(tmp_path)
    text = (tmp_path / FILE).read_text()
    if damage is None:
        (tmp_path / FILE).write_text(text[:50])
    else:
        content = json.loads(text)
        damage(content)
        (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="the file that was written with the weights"):
        attach_saved(model, tmp_path)
