"""Files of weights that are cut, contradict themselves, point out of their folder or hold code."""

import json
import struct
from typing import Any

import torch
from safetensors.torch import load_file

from bad_inputs.box import INDEX, SHARD, UP, WEIGHTS, Box, Code
from bad_inputs.case import area
from bad_inputs.commands import quantize
from zoo import zoo_model


def _moved_out(box: Box, place: str) -> list[Any]:
    """The second of two files lies outside the folder, and the index says so."""

    def change(places: dict[str, str]) -> None:
        places.update({name: place for name, file in places.items() if file == SHARD.format(2)})

    model = box.index(change)
    (model / SHARD.format(2)).rename(box / "x.safetensors")
    return quantize(model)


def _pickle_moved_out(box: Box) -> list[Any]:
    tensors = load_file(zoo_model("llama") / WEIGHTS)
    model = box.pickle(tensors)
    (model / "pytorch_model.bin").rename(box / "x.bin")
    index = {"weight_map": dict.fromkeys(tensors, "../x.bin")}
    box.write("model/pytorch_model.bin.index.json", json.dumps(index))
    return quantize(model, "--allow-pickle")


def _weights_are(box: Box, link: str | None) -> list[Any]:
    """The weights are a link, or a folder."""
    model = box.without(WEIGHTS)
    if link is None:
        (model / WEIGHTS).mkdir()
    else:
        (model / WEIGHTS).symlink_to(link)
    return quantize(model)


def _one_shard(box: Box, content: bytes | None) -> list[Any]:
    model = box.index()
    if content is None:
        (model / SHARD.format(2)).unlink()
    else:
        (model / SHARD.format(2)).write_bytes(content)
    return quantize(model)


def _index_text(box: Box, text: str) -> list[Any]:
    model = box.index()
    (model / INDEX).write_text(text)
    return quantize(model)


ROWS = [
    (
        "a weight file cut in its header",
        "its header claims",
        lambda b: quantize(b.weights(lambda c: c[:100])),
    ),
    ("a weight file cut in its data", "its tensors take", lambda b: quantize(b.weights(lambda c: c[:-1000]))),
    (
        "a weight file with something behind it",
        "belong to no tensor",
        lambda b: quantize(b.weights(lambda c: c + b"12")),
    ),
    ("an empty weight file", "the file has 0", lambda b: quantize(b.weights(lambda c: b""))),
    (
        "random bytes as weights",
        "its header claims",
        lambda b: quantize(b.weights(lambda c: bytes(range(256)) * 40)),
    ),
    (
        "a header that claims an exabyte",
        "claims 1152921504606846976 bytes",
        lambda b: quantize(b.weights(lambda c: struct.pack("<Q", 1 << 60) + c[8:])),
    ),
    (
        "a header that is no JSON",
        "its header is no JSON",
        lambda b: quantize(b.weights(lambda c: c[:8] + b"X" + c[9:])),
    ),
    (
        "two tensors on the same bytes",
        f"the bytes of {UP} are those of another tensor",
        lambda b: quantize(
            b.header(lambda h: h[UP].update(data_offsets=h[UP.replace("1", "0")]["data_offsets"]))
        ),
    ),
    (
        "a tensor behind the end of the file",
        "its tensors take",
        lambda b: quantize(
            b.header(lambda h: h[UP].update(data_offsets=[o + (1 << 30) for o in h[UP]["data_offsets"]]))
        ),
    ),
    (
        "a tensor of negative shape",
        "has the shape [-1, -96]",
        lambda b: quantize(b.header(lambda h: h[UP].update(shape=[-1, -96]))),
    ),
    (
        "a tensor with fewer bytes than its shape takes",
        "of shape [256, 95], has 98304 bytes",
        lambda b: quantize(b.header(lambda h: h[UP].update(shape=[256, 95]))),
    ),
    (
        "a type that nobody knows",
        "unknown type 'F12'",
        lambda b: quantize(b.header(lambda h: h[UP].update(dtype="F12"))),
    ),
    ("one of two weight files absent", "is not there", lambda b: _one_shard(b, None)),
    ("one of two weight files damaged", "cannot be read", lambda b: _one_shard(b, b"12")),
    (
        "a tensor in the index that the file does not hold",
        f"{UP} is not in",
        lambda b: quantize(b.index(lambda places: places.update({UP: SHARD.format(1)}))),
    ),
    (
        "a tensor that the index does not name",
        "one index of all files is expected",
        lambda b: quantize(b.index(lambda places: places.pop(UP))),
    ),
    ("an index that is no JSON", "an index in JSON is expected", lambda b: _index_text(b, "{")),
    ("an index without weight_map", "has no weight_map", lambda b: _index_text(b, '{"metadata": {}}')),
    ("an index that is a list", "has no weight_map", lambda b: _index_text(b, "[]")),
    (
        "a number for a file in the index",
        "in 5: the name of a file inside the folder is expected",
        lambda b: quantize(b.index(lambda places: places.update({UP: 5}))),
    ),
    (
        "an index that points out of the folder",
        "Nothing was read",
        lambda b: _moved_out(b, "../x.safetensors"),
    ),
    ("an index with an absolute path", "Nothing was read", lambda b: _moved_out(b, str(b / "x.safetensors"))),
    (
        "a link to weights that are gone",
        "is a link to gone.safetensors",
        lambda b: _weights_are(b, "gone.safetensors"),
    ),
    ("a folder named as the weight file", "no weights in", lambda b: _weights_are(b, None)),
    ("no weights", "no weights in", lambda b: quantize(b.without(WEIGHTS))),
    ("pickled weights", "pass --allow-pickle", lambda b: quantize(b.pickle({UP: torch.ones(1)}))),
    (
        "pickled weights with code in them, and --allow-pickle",
        "nothing of it was run",
        lambda b: quantize(b.pickle({UP: Code()}), "--allow-pickle"),
    ),
    (
        "a damaged pickle, and --allow-pickle",
        "are damaged or hold more than tensors",
        lambda b: quantize(
            (m := b.pickle({}), (m / "pytorch_model.bin").write_bytes(b"1234"))[0], "--allow-pickle"
        ),
    ),
    ("an index of pickles that points out of the folder", "Nothing was read", _pickle_moved_out),
    ("random bytes as GGUF", "not a GGUF file", lambda b: quantize(b.write("m.gguf", bytes(range(256))))),
    (
        "a GGUF file cut short",
        "cannot be opened",
        lambda b: quantize(b.write("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 5, 5))),
    ),
    ("an empty GGUF file", "cannot be opened", lambda b: quantize(b.write("m.gguf", b""))),
]

AREA = area("Weight files", ROWS, code=3)
