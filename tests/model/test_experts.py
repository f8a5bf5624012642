"""Experts in one tensor: small mixtures in each of the ways in which models compute them, against plain arithmetic."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from roundel.errors import ModelError
from roundel.model.experts import Expert, divide, joined, rejoin, stacks_in, unquantized
from roundel.model.linears import LinearView, linears_in
from roundel.model.mixtures import routers

COUNT, WIDTH, INNER = 3, 8, 10


class Config:
    hidden_size = WIDTH
    _experts_implementation_internal = "grouped_mm"


class Looped(nn.Module):
    """[E, out, in], one expert after the other."""

    is_transposed = False

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.up = nn.Parameter(torch.randn(COUNT, INNER, WIDTH))
        self.down = nn.Parameter(torch.randn(COUNT, WIDTH, INNER))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x)
        for index in chosen.unique():
            inner = functional.linear(x[chosen == index], self.up[index])
            found[chosen == index] = functional.linear(inner.relu(), self.down[index])
        return found


class Multiplied(nn.Module):
    """[E, in, out], by `@`, with biases."""

    is_transposed = True

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(COUNT, WIDTH, INNER))
        self.up_bias = nn.Parameter(torch.randn(COUNT, INNER))
        self.down = nn.Parameter(torch.randn(COUNT, INNER, WIDTH))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x)
        for index in chosen.unique():
            inner = x[chosen == index] @ self.up[index] + self.up_bias[index]
            found[chosen == index] = inner.relu() @ self.down[index]
        return found


class Llama4TextExperts(nn.Module):
    """[E, in, out], all at once with `bmm`, tokens of others zeroed; only its name says how it is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(COUNT, WIDTH, INNER))
        self.down = nn.Parameter(torch.randn(COUNT, INNER, WIDTH))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        mine = functional.one_hot(chosen, self.up.shape[0]).t()[:, :, None]
        return torch.bmm(torch.bmm(x * mine, self.up).tanh(), self.down).sum(0)


class Silent(Looped):
    """Nothing but the shapes says how it is stored."""

    is_transposed = None


class Block(nn.Module):
    def __init__(self, experts: type[nn.Module]) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, COUNT)
        self.experts = experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x, self.router(x).argmax(-1))


class Model(nn.Module):
    def __init__(self, experts: type[nn.Module]) -> None:
        super().__init__()
        self.config = Config()
        self.layers = nn.ModuleList([Block(experts)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


KINDS = [Looped, Multiplied, Llama4TextExperts, Silent]
TOKENS = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return Model(request.param)


def test_a_divided_model_computes_the_same(model: Model) -> None:
    wanted = model(TOKENS)
    names = set(model.state_dict())
    divide(model)
    assert len(stacks_in(model)) == 2
    assert torch.allclose(model(TOKENS), wanted, atol=1e-5)
    assert set(model.state_dict()) == names
    rejoin(model)
    assert not stacks_in(model)
    assert torch.equal(model(TOKENS), wanted)


def test_every_expert_is_a_linear_that_sees_its_own_tokens(model: Model) -> None:
    divide(model)
    views = [view for view in linears_in(model, "") if isinstance(view.module, Expert)]
    assert len(views) == 2 * COUNT
    assert all(view.shape == ((INNER, WIDTH) if ".up." in view.name else (WIDTH, INNER)) for view in views)
    assert all(model.get_submodule(view.name) is view.module for view in views)
    seen: dict[str, int] = {}
    for view in views:
        view.module.register_forward_pre_hook(
            lambda module, args, name=view.name: seen.__setitem__(name, len(args[0]))
        )
    model(TOKENS)
    chosen = model.layers[0].router(TOKENS).argmax(-1).bincount(minlength=COUNT).tolist()
    for key in ("up", "down"):
        assert [seen.get(f"layers.0.experts.{key}.{i}", 0) for i in range(COUNT)] == chosen


def test_an_expert_is_a_view_of_the_tensor(model: Model) -> None:
    divide(model)
    experts = model.layers[0].experts
    name = "layers.0.experts.up.1"
    view = LinearView(name, model.get_submodule(name))
    wanted = torch.randn(view.shape)
    others = experts._parameters["up"].detach().clone()[[0, 2]]
    view.write(wanted)
    stored = experts._parameters["up"].detach()
    assert torch.equal(stored[1].t() if stored.shape[1] == WIDTH else stored[1], wanted)
    assert torch.equal(stored[[0, 2]], others)
    # Moved by whoever owns the tensor, it is the same expert still.
    experts._parameters["up"].data = experts._parameters["up"].data.double()
    assert view.weight.dtype == torch.float64
    assert torch.equal(view.weight, wanted.double())


def test_gradients_of_experts_are_those_of_the_tensor(model: Model) -> None:
    whole = copy.deepcopy(model)
    whole(TOKENS).square().sum().backward()
    gradient = whole.layers[0].experts.down.grad
    divide(model)
    for index in range(COUNT):
        view = LinearView("", model.get_submodule(f"layers.0.experts.down.{index}"))
        view.want_gradient()
    model(TOKENS).square().sum().backward()
    for index in range(COUNT):
        view = LinearView("", model.get_submodule(f"layers.0.experts.down.{index}"))
        wanted = gradient[index] if gradient.shape[1:] == view.shape else gradient[index].t()
        found = view.take_gradient()
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_the_way_of_computing_experts_comes_back(model: Model) -> None:
    config = model.layers[0].experts.__dict__.get("config")
    divide(model)
    if config is not None:
        assert config._experts_implementation_internal == "eager"
    rejoin(model)
    if config is not None:
        assert config._experts_implementation_internal == "grouped_mm"


def test_a_state_is_taken_apart_and_joined_again(model: Model) -> None:
    divide(model)
    state, stacks = model.state_dict(), stacks_in(model)
    quantized = {"layers.0.experts.up.0", "layers.0.router"}
    left = unquantized(state, stacks, quantized)
    assert "layers.0.router.weight" not in left
    assert "layers.0.experts.down" in left
    assert {f"layers.0.experts.up.{i}.weight" for i in (1, 2)} <= set(left)
    first = LinearView("", model.get_submodule("layers.0.experts.up.0")).weight
    back = joined({**left, "layers.0.experts.up.0.weight": first}, stacks)
    assert torch.equal(back["layers.0.experts.up"], state["layers.0.experts.up"])


def test_what_is_named_stays_divided(model: Model) -> None:
    divide(model)
    rejoin(model, keep={"layers.0.experts.up"})
    assert set(stacks_in(model)) == {"layers.0.experts.up"}


def test_a_wrong_layout_is_said_not_computed() -> None:
    model = Model(Looped)
    model.layers[0].experts.is_transposed = True
    divide(model)
    with pytest.raises(ModelError, match=r"Looped.up was taken for experts stored as \[in, out\]"):
        model(TOKENS)


def test_an_unknown_use_is_said_with_a_way_out() -> None:
    class Strange(Looped):
        def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
            return torch.einsum("th,eih->ti", x, self.up)

    model = Model(Strange)
    divide(model)
    with pytest.raises(
        ModelError, match=r"Strange computes with its stacked experts up .* \(einsum\): leave"
    ):
        model(TOKENS)


def test_what_may_be_anything_is_not_divided() -> None:
    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3, WIDTH))
            self.mixer = nn.Conv1d(4, 4, 3)

    model = nn.Module()
    model.config, model.bank = Config(), Bank()
    divide(model)
    assert not stacks_in(model)


def test_the_router_of_a_tensor_of_experts_is_found(model: Model) -> None:
    divide(model)
    assert routers(model.layers[0], "layers.0") == {"layers.0.router"}


def test_routers_in_any_form_are_found() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, WIDTH))

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH))

    mixture = nn.Module()
    mixture.gate, mixture.shared_gate = Router(), nn.Linear(WIDTH, 1)
    mixture.experts = nn.ModuleList(mlp() for _ in range(5))
    mixture.shared = mlp()
    block = nn.Module()
    block.q_proj, block.mlp = nn.Linear(WIDTH, WIDTH), mixture
    assert routers(block, "h.0") == {"h.0.mlp.gate", "h.0.mlp.shared_gate"}
    block.mlp = mlp()
    assert routers(block, "h.0") == set()


def test_a_router_of_several_layers_is_one_and_attention_beside_it_is_none() -> None:
    """Experts, router and attention side by side in the block; the router has a place for tokens without an expert."""
    block = nn.Module()
    block.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 20)) for _ in range(4))
    block.choice = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, 5))
    block.attention = nn.Module()
    block.attention.sink = nn.Parameter(torch.randn(1, WIDTH))
    block.attention.proj = nn.Linear(WIDTH, WIDTH)
    assert routers(block, "h.0") == {"h.0.choice.0", "h.0.choice.2"}


def test_what_is_called_a_router_is_one_whatever_its_experts_are() -> None:
    block = nn.Module()
    block.ffn = nn.Module()
    block.ffn.router = nn.Module()
    block.ffn.router.layer = nn.Linear(WIDTH, 4)
    block.ffn.stacked = nn.Parameter(torch.randn(4 * 16, WIDTH))
    assert routers(block, "h.0") == {"h.0.ffn.router.layer"}
