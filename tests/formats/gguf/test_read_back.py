"""What is written from a folder is read by transformers as the same model with the same tokenizer."""

import pytest
import torch

from formats.gguf.spm import gemma_tokenizer, llama_tokenizer, model_file, pieces
from formats.gguf.tiny import READ_BY_TRANSFORMERS, TINY, tiny_model
from formats.gguf.writing import file_tensors, write
from roundel.errors import FormatError
from roundel.formats.gguf.architectures import architecture_of
from roundel.formats.gguf.checking import check_layout, check_read, left_over
from roundel.formats.gguf.file import GgufFile
from roundel.formats.gguf.metadata import file_shapes
from roundel.formats.gguf.moving import transposed_in
from roundel.formats.gguf.placing import layout_of
from roundel.model.source import open_source
from zoo import manual_text
from zoo.training import train_tokenizer

TEXTS = ("Hello  world\n\n it's 2024, 12345!", "éà 日本語 текст 😀\t\tx", "a<|end|> b", manual_text()[:2000])


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_the_weights_are_the_same(name, tmp_path):
    model = tiny_model(name, readable=True)
    path = write(model, train_tokenizer(), None, tmp_path / "model.gguf")
    read = open_source(path).model
    expected, found = model.state_dict(), read.state_dict()
    assert found.keys() == expected.keys()
    for key in expected:  # one is added to some norms, and taken off: that rounds
        torch.testing.assert_close(found[key], expected[key], rtol=2e-6, atol=1.2e-7, msg=key)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_what_was_read_has_its_place_in_the_file_that_it_came_from(name, tmp_path):
    path = write(tiny_model(name, readable=True), train_tokenizer(), None, tmp_path / "model.gguf")
    model, file = open_source(path).model, GgufFile(path)
    layout = layout_of(model, file.arch)
    state, transposed = model.state_dict(), transposed_in(model)
    check_layout(layout, state, lambda key: state[key].mT if key in transposed else state[key], file.tensor)
    assert all(tensor.startswith("rope_") for tensor in left_over(layout, file.tensors))


@pytest.mark.parametrize("name", ["llama_biases", "stablelm_norms"])
def test_weights_that_transformers_leaves_out_are_refused_by_name(name, tmp_path):
    path = write(tiny_model(name), train_tokenizer(), None, tmp_path / "model.gguf")
    model, file = open_source(path).model, GgufFile(path)
    layout = layout_of(model, file.arch)
    left = left_over(layout, file.tensors)
    with pytest.raises(FormatError, match=r"the file has blk\.0\..*, and transformers does not read it"):
        check_read(left, 2)
    check_read(["rope_freqs.weight", "output.weight", "blk.2.nextn.eh_proj.weight"], 2)


@pytest.mark.parametrize("name", TINY)
def test_shapes_are_known_before_there_are_weights(name):
    with torch.device("meta"):
        empty = tiny_model(name)
    shapes = file_shapes(empty, layout_of(empty, architecture_of(empty.config).name))
    tensors = {key: tuple(tensor.shape) for key, tensor in file_tensors(tiny_model(name)).items()}
    assert shapes == {key: shape for key, shape in tensors.items() if not key.startswith("rope_")}


@pytest.mark.parametrize("name", TINY)
def test_every_number_of_a_model_is_in_the_file_once(name):
    model = tiny_model(name)
    tensors = file_tensors(model)
    written = sum(tensor.numel() for key, tensor in tensors.items() if not key.startswith("rope_"))
    biases = [buffer for key, buffer in model.named_buffers() if key.endswith("e_score_correction_bias")]
    assert written == sum(tensor.numel() for tensor in (*model.parameters(), *biases))


def test_byte_level_tokens_are_the_same(tmp_path):
    tokenizer = train_tokenizer()
    read = open_source(write(tiny_model("llama"), tokenizer, None, tmp_path / "model.gguf")).tokenizer
    for text in TEXTS:
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("with_file", [False, True], ids=["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize(
    ("architecture", "make"),
    [("llama", llama_tokenizer), ("gemma3", gemma_tokenizer)],
    ids=["llama", "gemma"],
)
def test_tokens_of_sentencepiece_are_the_same(architecture, make, with_file, tmp_path):
    tokenizer, folder = make(), tmp_path / "original"
    folder.mkdir()
    if with_file:
        data = model_file(pieces(), blank_first=architecture == "llama")
        (folder / "tokenizer.model").write_bytes(data)
    path = write(tiny_model(architecture), tokenizer, folder, tmp_path / "model.gguf")
    read = open_source(path).tokenizer
    for text in TEXTS:
        # The file says BOS only where there is a template or a post-processor, and transformers adds it by class.
        mine, theirs = (t(text, add_special_tokens=False)["input_ids"] for t in (tokenizer, read))
        assert mine == theirs
    assert read.chat_template == tokenizer.chat_template
