"""A folder of its own for one bad input, and what damages a model in it."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import roundel
from zoo import zoo_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-0000{}-of-00002.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"

Change = Callable[[Any], object]


class Box:
    """A folder of its own for one case, and what cases need to damage a model in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: str | bytes) -> Path:
        """A file."""
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def model(self, architecture: str = "llama", name: str = "model") -> Path:
        """A whole model."""
        return Path(shutil.copytree(zoo_model(architecture), self / name))

    def without(self, pattern: str) -> Path:
        """A model without some of its files."""
        model = self.model()
        for path in model.glob(pattern):
            path.unlink()
        return model

    def holding(self, name: str, content: str | bytes) -> Path:
        """A model of which one file has other content."""
        model = self.model()
        self.write(f"model/{name}", content)
        return model

    def config(self, **changes: Any) -> Path:
        """A model with changes in config.json; None takes a key out."""
        model = self.model()
        edit(model / "config.json", lambda config: [put(config, *change) for change in changes.items()])
        return model

    def tensors(self, change: Change, **config: Any) -> Path:
        """A model with changed tensors."""
        model = self.config(**config)
        edit_tensors(model / WEIGHTS, change)
        return model

    def filled(self, name: str, value: float) -> Path:
        """A model with a row of one value in a tensor."""
        return self.tensors(lambda tensors: tensors[name][3].fill_(value))

    def weights(self, change: Callable[[bytes], bytes]) -> Path:
        """A model with a changed weight file."""
        return self.holding(WEIGHTS, change((zoo_model("llama") / WEIGHTS).read_bytes()))

    def header(self, change: Change) -> Path:
        """A model with a changed header of its weight file."""

        def damage(content: bytes) -> bytes:
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])
            change(header)
            text = json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + content[8 + length :]

        return self.weights(damage)

    def index(self, change: Change = lambda places: None) -> Path:
        """A model in two files, the second block in the second, with changes in the index's weight_map."""
        model = self.model()
        tensors = load_file(model / WEIGHTS)
        (model / WEIGHTS).unlink()
        places: dict[str, Any] = {}
        for number in (1, 2):
            file = SHARD.format(number)
            shard = {name: t for name, t in tensors.items() if (".layers.1." in name) == (number == 2)}
            save_file(shard, model / file, metadata={"format": "pt"})
            places |= dict.fromkeys(shard, file)
        change(places)
        self.write(f"model/{INDEX}", json.dumps({"metadata": {}, "weight_map": places}))
        return model

    def pickle(self, content: object) -> Path:
        """A model whose weights are pickled."""
        model = self.without(WEIGHTS)
        torch.save(content, model / "pytorch_model.bin")
        return model

    def narrow(self, vocabulary: int) -> Path:
        """A model that knows fewer tokens than its tokenizer gives."""

        def cut(tensors: dict[str, torch.Tensor]) -> None:
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[name] = tensors[name][:vocabulary].clone()

        return self.tensors(cut, vocab_size=vocabulary)

    def quantized(self, container: str = "compressed-tensors", name: str = "", content: str = "") -> Path:
        """What Roundel writes; one of its files, if named, has other content."""
        shutil.copytree(_quantized(container).name, self / "small")
        if name:
            self.write(f"small/{name}", content)
        return self / "small"

    def manifest(self, change: Change) -> Path:
        """What Roundel writes, with a changed manifest."""
        folder = self.quantized()
        edit(folder / "roundel.json", change)
        return folder


@cache
def _quantized(container: str) -> TemporaryDirectory[str]:
    """What Roundel writes, written once: boxes get copies."""
    place = TemporaryDirectory()
    recipe = roundel.Recipe(method="rtn", group_size=32, format=container)
    roundel.quantize(zoo_model("llama"), recipe, output=place.name)
    assert (Path(place.name) / "report.html").exists(), "tests of what Roundel writes are marked `reports`"
    return place


def edit(path: Path, change: Change) -> None:
    """A JSON file in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_tensors(path: Path, change: Change) -> None:
    """A file of tensors in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """A value under a key; None takes the key out."""
    if value is None:
        data.pop(key, None)
    else:
        data[key] = value


class Code:
    """What a pickle can do when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-was-run",)
