"""The embedding and the head as layers: tied or not, in memory or streamed, in every format that carries them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import roundel
from roundel.errors import FormatError
from zoo import manual_text, zoo_model

DATA: dict[str, Any] = {"nsamples": 8, "seqlen": 32, "batch_size": 4}
# Whose head is tied to the embedding, and whose is not.
TIED, UNTIED = "gpt2", "llama"


def recipe(**settings: Any) -> roundel.Recipe:
    return roundel.Recipe.create(**{"method": "rtn", "group_size": 32, "format": "roundel", **settings})


def layer(made: roundel.Quantized, name: str) -> dict[str, Any]:
    return next(found for found in made.manifest["layers"] if found["name"] == name)


@pytest.mark.parametrize("name", [TIED, UNTIED])
@pytest.mark.parametrize("format", ["roundel", "dense"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_gives_back_the_quantized_embedding(
    name: str, format: str, bits: int, tmp_path: Path
) -> None:
    chosen = recipe(embedding_bits=bits, format=format)
    made = roundel.quantize(zoo_model(name), chosen, output=tmp_path / "out", held_out=None)
    before = roundel.quantize(zoo_model(name), recipe())
    embedding = made.model.get_input_embeddings().weight
    assert not torch.equal(embedding, before.model.get_input_embeddings().weight)
    opened, _ = roundel.load(tmp_path / "out", packed=False)
    assert torch.equal(opened.get_input_embeddings().weight, embedding)
    tied = made.model.get_output_embeddings().weight is embedding
    assert tied == (name == TIED)
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) == tied
    where = "transformer.wte" if name == TIED else "model.embed_tokens"
    assert layer(made, where)["bits"] == bits
    weights = roundel.read_integers(tmp_path / "out")
    assert torch.equal(weights[where].dequantize(embedding.dtype), embedding)


@pytest.mark.parametrize("name", [TIED, UNTIED])
def test_streamed_is_in_memory(name: str, tmp_path: Path) -> None:
    chosen = recipe(start="search", embedding_bits=5, head_bits=6, **DATA)
    for stream in (False, True):
        roundel.quantize(
            zoo_model(name),
            chosen,
            output=tmp_path / str(stream),
            stream=stream,
            held_out=None,
            calibration=[manual_text()],
        )
    one, other = ((tmp_path / str(stream) / "roundel.safetensors").read_bytes() for stream in (False, True))
    assert one == other


def test_a_tied_embedding_is_searched_for_the_head() -> None:
    """The logits of the searched one are closer to the original's than those of one that spans its weights."""
    original, tokenizer = roundel.load(zoo_model(TIED))
    ids = tokenizer(manual_text(), return_tensors="pt")["input_ids"][:, 2000:2064]
    errors = {}
    for start in ("search", "minmax"):
        data = DATA if start == "search" else {}
        chosen = recipe(start=start, embedding_bits=4, skip=["*.h.*"], **data)
        made = roundel.quantize(zoo_model(TIED), chosen, calibration=[manual_text()] if data else None)
        with torch.no_grad():
            difference = made.model(ids).logits - original(ids).logits
        errors[start] = float(difference.square().mean())
    assert errors["search"] < errors["minmax"]


@pytest.mark.parametrize("where", ["embedding_bits", "head_bits"])
@pytest.mark.parametrize("method", ["gptq", "autoround"])
def test_error_feedback_rounds_what_the_head_multiplies_by(method: str, where: str) -> None:
    """Logits on text that calibration did not see are closer to the original's than after a search."""
    original, tokenizer = roundel.load(zoo_model(TIED))
    ids = tokenizer(manual_text(), return_tensors="pt")["input_ids"][:, 8000:8128]
    data = {
        **DATA,
        "nsamples": 64,
        "start": "search",
        where: 4,
        "sym": True,
        "skip": ["*.h.[1-9]*", "*.h.0.a*"],
    }
    tuning = {"iters": 1, "holdout": 1} if method == "autoround" else {}
    errors = {}
    for name, more in (("rtn", {}), (method, tuning)):
        made = roundel.quantize(
            zoo_model(TIED), recipe(method=name, **data, **more), calibration=[manual_text()]
        )
        with torch.no_grad():
            difference = made.model(ids).logits - original(ids).logits
        errors[name] = float(difference.square().mean())
        found = layer(made, "transformer.wte" if where == "embedding_bits" else "lm_head")
        assert not found["note"]
    assert errors[method] < 0.9 * errors["rtn"]


@pytest.mark.parametrize("name", [TIED, UNTIED])
@pytest.mark.parametrize("method", ["rtn", "gptq", "spqr"])
def test_pieces_of_rows_are_the_whole(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(method=method, start="search", embedding_bits=4, head_bits=5, **DATA)
    found = []
    for rows in (1 << 12, 64):
        monkeypatch.setattr("roundel.engine.outside._ROWS", rows)
        made = roundel.quantize(zoo_model(name), chosen, calibration=[manual_text()])
        found.append({key: made.weights[key] for key in made.weights if ".0." not in key})
        assert len(made.model.get_input_embeddings().weight) > 64
    for key, weight in found[0].items():
        same = (weight.codes == found[1][key].codes).float().mean()
        # Sums of matrix products of other sizes may differ in their last bit, and a code with them.
        assert same > 0.999, key


def test_a_head_with_bits_of_its_own_is_untied(tmp_path: Path) -> None:
    made = roundel.quantize(zoo_model(TIED), recipe(head_bits=8, embedding_bits=4))
    head, embedding = made.model.get_output_embeddings(), made.model.get_input_embeddings()
    assert head.weight is not embedding.weight
    assert (layer(made, "lm_head")["bits"], layer(made, "transformer.wte")["bits"]) == (8, 4)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("head", [None, 4])
def test_transformers_opens_a_quantized_embedding_in_compressed_tensors(
    head: int | None, sym: bool, tmp_path: Path
) -> None:
    chosen = recipe(embedding_bits=4, head_bits=head, sym=sym, format="compressed-tensors")
    made = roundel.quantize(zoo_model(UNTIED), chosen, output=tmp_path / "out", held_out=None)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, made.model(ids).logits)
    assert torch.equal(opened.get_input_embeddings().weight, made.model.get_input_embeddings().weight)


def test_compressed_tensors_keeps_no_weight_twice(tmp_path: Path) -> None:
    """What the head is tied to cannot be quantized for both; for each by itself it can."""
    with pytest.raises(FormatError, match="also the weight of the output head"):
        roundel.quantize(
            zoo_model("bloom"),
            recipe(embedding_bits=4, format="compressed-tensors"),
            output=tmp_path / "tied",
            held_out=None,
        )
    chosen = recipe(embedding_bits=4, head_bits=4, format="compressed-tensors")
    made = roundel.quantize(zoo_model("bloom"), chosen, output=tmp_path / "untied", held_out=None)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, made.model(ids).logits)


def test_patterns_reach_the_embedding_too() -> None:
    chosen = recipe(embedding_bits=8, layers={"*.wte": {"bits": 3}})
    assert layer(roundel.quantize(zoo_model(TIED), chosen), "transformer.wte")["bits"] == 3


def test_inputs_of_an_embedding_are_not_quantized() -> None:
    made = roundel.quantize(zoo_model(UNTIED), recipe(embedding_bits=8, act_bits=8))
    with torch.no_grad():
        logits = made.model(torch.arange(12)[None]).logits
    assert torch.isfinite(logits).all()


def test_a_budget_of_the_blocks_does_not_bind_what_has_bits_of_its_own() -> None:
    chosen = recipe(method="spqr", target_bits=5.5, embedding_bits=8, head_bits=8, group_size=16, **DATA)
    made = roundel.quantize(zoo_model(TIED), chosen, calibration=[manual_text()])
    assert layer(made, "transformer.wte")["bits_per_weight"] > 8
    assert layer(made, "lm_head")["bits_per_weight"] > 8
    assert layer(made, "transformer.h.0.mlp.c_fc")["bits_per_weight"] <= 5.5
