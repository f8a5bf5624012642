"""W4A8 and W8A8: a packed Linear multiplies by the integers of its input what the simulation multiplies as floats."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import roundel
from roundel.activations.attach import ActivationQuantizer, attached
from roundel.activations.rounding import codes_of, quantize_static, quantize_vectors
from roundel.activations.scheme import Activations, ActivationScheme, StaticGrid
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.methods.rtn import make_start
from roundel.runtime.modules import PackedLinear, pack_linear
from roundel.runtime.replace import packed_modules
from zoo import zoo_model

SCHEMES = [
    ActivationScheme(bits, sym, static)
    for bits in (8, 4)
    for sym in (True, False)
    for static in (True, False)
]
GRIDS = [
    {"bits": 4, "group_size": 32},
    {"bits": 8, "group_size": -1, "sym": True},
    {"bits": 3, "group_size": 20},
]


def weight_of(out: int, width: int, generator: torch.Generator, extra: str, **grid: Any) -> QuantizedWeight:
    weight, scheme = torch.randn(out, width, generator=generator), Scheme(**grid)
    start = make_start(weight, scheme, "minmax", None)
    outliers = order = None
    if extra == "outliers":
        chosen = torch.rand(out, width, generator=generator) < 0.03
        outliers = Outliers.where(chosen, 5 * weight)
    if extra == "order":
        order = torch.randperm(width, generator=generator)
    found = start.quantize(weight, scheme)
    return QuantizedWeight(found.codes, found.scale, found.zero, scheme, outliers, order)


def rounded(x: torch.Tensor, scheme: ActivationScheme, grid: StaticGrid | None) -> torch.Tensor:
    return quantize_vectors(x, scheme) if grid is None else quantize_static(x, grid, scheme)


@pytest.mark.parametrize("extra", ["", "outliers", "order"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.summary)
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_products_of_integers_are_those_of_the_simulation(
    tokens: int, scheme: ActivationScheme, grid: dict[str, Any], extra: str
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    weight = weight_of(50, 100, generator, extra, **grid)
    bias = torch.randn(50, generator=generator)
    layer = pack_linear(weight, torch.float32, bias)
    x = torch.randn(2, tokens, 100, generator=generator) + 0.5
    fixed = StaticGrid(4 / scheme.levels, 0 if scheme.sym else -3) if scheme.static else None
    layer.take_codes(lambda x: codes_of(x, scheme, fixed))
    wanted = linear(rounded(x, scheme, fixed).double(), weight.dequantize().double(), bias.double())
    # Sums of a hundred products in float32, in whatever order.
    assert torch.allclose(layer(x).double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    layer.take_codes(None)
    plain = linear(x, weight.dequantize(), bias)
    assert torch.allclose(layer(x), plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.summary)
def test_codes_are_what_is_rounded_to(scheme: ActivationScheme) -> None:
    generator = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(4, 7, 33, generator=generator)
    x[0, 0], x[1, 1, 2] = 0.0, 300.0
    fixed = StaticGrid(0.031, 0 if scheme.sym else 2) if scheme.static else None
    codes = codes_of(x, scheme, fixed)
    assert codes.codes.dtype is torch.int8
    assert int(codes.codes.min()) >= -scheme.midpoint
    assert int(codes.codes.max()) <= scheme.midpoint - 1
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(
            codes_of(x.to(dtype), scheme, fixed).dequantize(dtype), rounded(x.to(dtype), scheme, fixed)
        )


@pytest.mark.parametrize("static", [True, False])
def test_what_is_no_number_stays_none(static: bool) -> None:
    scheme = ActivationScheme(8, False, static)
    fixed = StaticGrid(0.1, 0) if static else None
    layer = pack_linear(
        weight_of(8, 32, torch.Generator().manual_seed(0), "", bits=4, group_size=32), torch.float32
    )
    layer.take_codes(lambda x: codes_of(x, scheme, fixed))
    x = torch.ones(3, 32)
    x[1, 4] = torch.nan
    y = layer(x)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


SETTINGS: list[dict[str, Any]] = [
    {"act_bits": 8},
    {"act_bits": 8, "act_sym": True, "bits": 8},
    {"act_bits": 8, "act_scale": "static"},
    {"act_bits": 4, "kv_bits": 8},
]


def linears_of(
    simulated: nn.Module, model: nn.Module, ids: torch.Tensor
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """What went into every Linear of the simulation that the model has packed, and what came out."""
    found: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    names = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    hooks = []
    for name in names:
        inputs: list[torch.Tensor] = []
        module = simulated.get_submodule(name)
        # Before the hook that rounds it.
        hooks.append(
            module.register_forward_pre_hook(lambda _, args, at=inputs: at.append(args[0]), prepend=True)
        )
        hooks.append(
            module.register_forward_hook(
                lambda _, args, y, name=name, at=inputs: found.append((name, at.pop(), y))
            )
        )
    simulated(ids)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(names) > 0
    return found


@pytest.mark.slow("writes models")
@pytest.mark.parametrize("format", ["roundel", "compressed-tensors"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_a_folder_runs_with_integers(format: str, settings: dict[str, Any], tmp_path: Path) -> None:
    calibrated = {"nsamples": 4, "seqlen": 32} if settings.get("act_scale") == "static" else {}
    recipe = roundel.Recipe.create(method="rtn", group_size=32, format=format, **calibrated, **settings)
    data = "pydoc" if recipe.needs_calibration else None
    roundel.quantize(zoo_model("llama"), recipe, output=tmp_path / "out", calibration=data, held_out=None)
    simulated, _ = roundel.load(tmp_path / "out", packed=False)
    model, _ = roundel.load(tmp_path / "out", packed=True)
    assert attached(model).summary == attached(simulated).summary
    ids = torch.arange(12)[None]
    for name, x, wanted in linears_of(simulated, model, ids):
        torch.testing.assert_close(
            model.get_submodule(name)(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max())
        )
    # From there on rounding is a step: a sum that is another by its last bit falls on the other side of one now and
    # then, and what it changes makes others fall. Two such runs are no farther apart than either is from none.
    wanted = simulated(ids).logits
    apart = float((model(ids).logits - wanted).norm() / wanted.norm())
    with attached(simulated).switched(on=False):
        cost = float((simulated(ids).logits - wanted).norm() / wanted.norm())
    assert apart < cost
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)
    layers = [m for m in packed_modules(model) if isinstance(m, PackedLinear)]
    assert all(layer._codes_of is not None for layer in layers)
    with attached(model).switched(on=False), attached(simulated).switched(on=False):
        plain = simulated(ids).logits
        assert float((model(ids).logits - plain).norm() / plain.norm()) < 1e-4
    attached(model).detach()
    assert all(layer._codes_of is None for layer in layers)


def test_a_quantizer_that_is_off_gives_no_codes(llama: Path, load_model) -> None:
    model, _ = load_model(llama)
    quantizer = ActivationQuantizer(model, ["lm_head"], Activations(ActivationScheme(8, False, static=False)))
    assert quantizer.input_codes("lm_head", torch.ones(1, 96)) is None
    with quantizer.switched(on=True):
        assert quantizer.input_codes("lm_head", torch.ones(1, 96)) is not None
