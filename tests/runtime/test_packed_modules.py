import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.runtime.modes import MODES, Mode
from roundel.runtime.modules import PackedEmbedding, PackedLinear, pack_linear
from roundel.runtime.packed_weight import PackedWeight
from runtime.random_weights import FORMS, a_weight


def some_weight(rows: int = 37, columns: int = 213) -> QuantizedWeight:
    return a_weight(
        Scheme(bits=3, group_size=16, **FORMS["two levels, nibbles"]), rows, columns, 0, "some", True
    )


def a_linear(dtype: torch.dtype = torch.float32, mode: Mode = "exact") -> PackedLinear:
    bias = torch.linspace(-1, 1, 37, dtype=dtype)
    linear = pack_linear(some_weight(), dtype, bias)
    linear.mode = mode
    return linear


def an_embedding(scale: float | None = None, dtype: torch.dtype = torch.float32) -> PackedEmbedding:
    factor = None if scale is None else torch.tensor(scale)
    return PackedEmbedding(PackedWeight.pack(some_weight()), dtype, factor)


def activations(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Both(nn.Module):
    """Token ids to the width of the Linear."""

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.embedding, self.linear = an_embedding(2.0), a_linear(mode=mode)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(ids).relu())


def test_a_linear_is_that_of_its_decoded_weight() -> None:
    linear, x = a_linear(), activations(2, 3, 213)
    assert torch.equal(linear.weight, some_weight().dequantize())
    wanted = nn.functional.linear(x, linear.weight, linear.bias)
    torch.testing.assert_close(linear(x), wanted, rtol=1e-4, atol=1e-4)
    assert linear.integers().equals(some_weight())


def test_an_embedding_is_that_of_its_decoded_weight() -> None:
    ids = torch.tensor([[0, 36, 5], [5, 1, 2]])
    weight = some_weight().dequantize()
    assert torch.equal(an_embedding()(ids), weight[ids])
    assert torch.equal(an_embedding(3.0)(ids), weight[ids] * 3)
    assert torch.equal(an_embedding(dtype=torch.bfloat16)(ids), weight.bfloat16()[ids])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_of_the_model(dtype: torch.dtype) -> None:
    """The numbers of the weight stay what they are."""
    linear, x = a_linear(), activations(2, 213).to(dtype)
    before = {name: part.clone() for name, part in linear.packed.parts.items()}
    found = linear.to(dtype)(x)
    assert found.dtype is dtype
    assert all(torch.equal(part, before[name]) for name, part in linear.packed.parts.items())
    torch.testing.assert_close(found.float(), a_linear()(x.float()), rtol=2e-2, atol=2e-2)


def saved_and_loaded(module: PackedLinear) -> PackedLinear:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    found: PackedLinear = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("again", [copy.deepcopy, saved_and_loaded])
def test_copies_do_not_share_memory(again: Callable[[PackedLinear], PackedLinear]) -> None:
    linear, x = a_linear(), activations(2, 213)
    wanted = linear(x)
    other = again(linear)
    linear.get_buffer("codes").zero_()
    assert torch.equal(other(x), wanted)
    assert not torch.equal(linear(x), wanted)


def test_parts_that_come_later() -> None:
    """Made on the meta device, and filled in place or by assignment."""
    wanted, x = a_linear(), activations(2, 213)
    shell = a_linear().to("meta")
    assert shell.get_buffer("codes").device.type == "meta"
    assigned = copy.deepcopy(shell)
    assigned.load_state_dict(wanted.state_dict(), assign=True)
    filled = shell.to_empty(device="cpu")
    filled.load_state_dict(wanted.state_dict())
    assert torch.equal(assigned(x), wanted(x))
    assert torch.equal(filled(x), wanted(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_one_graph(backend: str, mode: Mode) -> None:
    """The numbers of tokens are free, and change nothing."""
    torch._dynamo.reset()
    model = Both(mode).eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3), (1, 7), (4, 5)):
            ids = torch.arange(shape[0] * shape[1]).view(shape)
            assert torch.equal(compiled(ids), model(ids))


@pytest.mark.parametrize("mode", MODES)
def test_exported(mode: Mode) -> None:
    model, ids = Both(mode).eval(), torch.arange(6).view(2, 3)
    tokens = torch.export.Dim("tokens", min=2, max=64)
    program = torch.export.export(model, (ids,), dynamic_shapes={"ids": {1: tokens}})
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"roundel.linear.default", "roundel.lookup.default"} <= names
    more = torch.arange(20).view(2, 10)
    assert torch.equal(program.module()(more), model(more))
    assert torch.equal(program.module()(ids), model(ids))
