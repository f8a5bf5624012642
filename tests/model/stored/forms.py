"""Checkpoints that are quantized already, of every form, made by plain packers (zoo/quantized.py)."""

from collections.abc import Callable
from pathlib import Path

import torch

from roundel.model.source import open_source
from roundel.system.progress import Progress
from zoo import zoo_model
from zoo.quantized import awq, fp8, gptq, int8, mxfp4, nf4

Make = Callable[[Path, Path], Path]
FORMS: dict[str, tuple[str, Make]] = {
    "fp8": ("llama", lambda model, folder: fp8(model, folder, (16, 32))),
    "fp8, experts": ("deepseek_v3", fp8),
    "mxfp4": ("gpt_oss", mxfp4),
    "gptq": ("llama", gptq),
    "gptq, 8 bits, by size": ("llama", lambda model, folder: gptq(model, folder, 8, order=True)),
    "gptq, experts": ("qwen3_moe", gptq),
    "awq": ("llama", awq),
    "nf4": ("llama", lambda model, folder: nf4(model, folder, nested=False)),
    "nf4, twice": ("llama", lambda model, folder: nf4(model, folder, nested=True)),
    "int8": ("llama", int8),
}
RTN = {"method": "rtn", "bits": 4, "group_size": 32, "sym": True}


class Heard(Progress):
    """What a user is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, words: str) -> None:
        self.said.append(words)


def made(form: str, tmp_path: Path) -> Path:
    name, make = FORMS[form]
    return make(zoo_model(name), tmp_path / "source")


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def weight_of(model: Path, name: str = "model.layers.0.self_attn.q_proj.weight") -> torch.Tensor:
    return open_source(str(model)).model.state_dict()[name]
