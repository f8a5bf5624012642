"""A model that was read from a GGUF file goes back where it came from, tensor by tensor."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from formats.gguf.tiny import tiny_config, tiny_model
from roundel.errors import FormatError
from roundel.formats.gguf.checking import check_layout, left_over
from roundel.formats.gguf.file import GgufFile
from roundel.formats.gguf.layout import Layout
from roundel.formats.gguf.moving import transposed_in
from roundel.formats.gguf.placing import layout_of
from roundel.model.source import open_skeleton, open_source
from zoo import zoo_model
from zoo.gguf_file import write_gguf


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model, and the file that another writer made of it."""
    path = write_gguf(zoo_model("llama"), tmp_path_factory.mktemp("gguf") / "llama.gguf")
    return open_source(path).model, GgufFile(path)


def check(model, file: GgufFile, layout: Layout) -> None:
    state, transposed = model.state_dict(), transposed_in(model)
    check_layout(
        layout, state, lambda name: state[name].mT if name in transposed else state[name], file.tensor
    )


def test_a_llama_is_what_another_writer_made_of_it(llama):
    model, file = llama
    layout = layout_of(model, "llama")
    check(model, file, layout)
    assert left_over(layout, file.tensors) == []


def test_a_wrong_order_of_rows_is_refused_by_name(llama):
    model, file = llama
    name = "model.layers.1.self_attn.k_proj.weight"
    layout = layout_of(model, "llama")
    layout[name] = [replace(layout[name][0], rows=None)]
    with pytest.raises(FormatError, match=f"{re.escape(name)} .* as blk.1.attn_k.weight it differs in"):
        check(model, file, layout)


def test_a_tensor_that_the_file_has_not_is_refused_by_name(llama):
    model, file = llama
    layout = layout_of(model, "llama")
    layout["model.norm.weight"] = [replace(layout["model.norm.weight"][0], name="token_norm.weight")]
    with pytest.raises(FormatError, match="model.norm.weight .* the file has no token_norm.weight"):
        check(model, file, layout)


def test_experts_have_places_as_linears_too():
    with torch.device("meta"):
        model = tiny_model("qwen3_moe")
    layout = layout_of(model, "qwen3moe")
    gate, up = layout["model.layers.1.mlp.experts.gate_up_proj.3.weight"]
    assert (gate.name, gate.expert, gate.rows.tolist()) == ("blk.1.ffn_gate_exps.weight", 3, list(range(64)))
    assert (up.name, up.expert, up.rows.tolist()) == ("blk.1.ffn_up_exps.weight", 3, list(range(64, 128)))
    assert len(layout["model.layers.1.mlp.experts.gate_up_proj"]) == 2 * 4
    assert layout["model.layers.1.mlp.gate.weight"][0].name == "blk.1.ffn_gate_inp.weight"


def test_a_block_that_llama_cpp_has_not_is_refused():
    model = open_skeleton(zoo_model("qwen3_moe")).model  # its first block has no experts
    with pytest.raises(FormatError, match="model.layers.0.mlp.gate_proj.weight has no place in a GGUF file"):
        layout_of(model, "qwen3moe")


def test_what_would_move_columns_is_refused():
    config = tiny_config("qwen3_5")
    config.linear_num_value_heads = 4
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        FormatError, match=r"linear_attn.out_proj.weight would need its columns in another order"
    ):
        layout_of(model, "qwen35")


def test_an_unknown_architecture_is_refused(llama):
    with pytest.raises(FormatError, match="architecture 'opt' is not known: one of .*llama.* is expected"):
        layout_of(llama[0], "opt")
