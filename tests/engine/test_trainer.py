from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from roundel.engine.trainer import BlockData, Tuned, _Trainer, tune
from roundel.errors import NonFiniteError
from roundel.grid.affine import minmax_start
from roundel.grid.scheme import Scheme
from roundel.methods.optimizer import make_optimizer
from roundel.methods.options import TuningOptions
from roundel.methods.signround import RoundingOffsets
from roundel.model.linears import linears_in

SCHEME = Scheme(bits=2, group_size=16)


class Toy(nn.Module):
    """Two Linears and a non-linearity: the smallest thing with a joint optimum."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = nn.Linear(32, 48, bias=False)
        self.down = nn.Linear(48, 32, bias=False)
        for linear in (self.up, self.down):
            linear.weight.data = torch.randn(linear.weight.shape, generator=generator) / 6
        self.requires_grad_(False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(torch.relu(self.up(hidden)))


def setting(options: TuningOptions, lr: float | None = None):
    block = Toy()
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(32, 32, generator=generator) / 4
    inputs = torch.randn(24, 10, 32, generator=generator) @ mix
    data = BlockData("toy", block, inputs, block(inputs), torch.device("cpu"))
    views = {view.name: view for view in linears_in(block, "toy")}
    weights = {name: view.weight.clone() for name, view in views.items()}
    starts = {name: minmax_start(w, SCHEME) for name, w in weights.items()}
    parametrizations = {
        name: RoundingOffsets(
            w,
            starts[name],
            SCHEME,
            lr=lr or options.resolved_lr(2),
            minmax_lr=options.resolved_minmax_lr(searched=False),
            minmax_limit=2.0,
        )
        for name, w in weights.items()
    }
    rounded = {name: starts[name].quantize(w, SCHEME) for name, w in weights.items()}
    return block, data, views, rounded, parametrizations


def run(lr: float | None = None, **options: object) -> tuple[Tuned, Toy, BlockData]:
    chosen = TuningOptions(batch_size=4, holdout=4, **options)
    block, data, views, rounded, parametrizations = setting(chosen, lr)
    generator = torch.Generator().manual_seed(2)
    return tune(data, views, rounded, parametrizations, chosen, generator), block, data


def test_tuning_nearly_halves_the_loss_of_rounding() -> None:
    tuned, _, _ = run(iters=100)
    assert tuned.loss_end < 0.6 * tuned.loss_start
    assert tuned.kept == "iteration 100"
    assert len(tuned.curve) == 100


def test_the_block_is_left_with_the_weights_of_the_result() -> None:
    tuned, block, _ = run(iters=10)
    for name, weight in tuned.weights.items():
        assert torch.equal(block.get_submodule(name.removeprefix("toy.")).weight, weight.dequantize())


@pytest.mark.parametrize(("loss", "share"), [("relative", 1.0), ("mse", 0.0), ("balanced", 0.5)])
def test_reported_losses_are_those_of_the_formulas_on_the_held_out_samples(loss: str, share: float) -> None:
    tuned, block, data = run(iters=10, loss=loss)
    wanted = data.targets[-4:, :-1]
    error = block(data.inputs[-4:])[:, :-1] - wanted
    relative = float((error.square().sum(-1) / wanted.square().sum(-1)).mean())
    of_the_paper = float(error.square().mean() / data.targets[:, :-1].square().mean())
    assert tuned.loss_end == pytest.approx(share * relative + (1 - share) * of_the_paper, rel=1e-5)


def test_balanced_loss_keeps_massive_tokens_without_giving_up_the_others() -> None:
    """One token in ten is a hundred times larger and comes through weights of its own, as attention sinks do."""
    massive, others = Counter[str](), Counter[str]()
    for loss in ("relative", "balanced", "mse"):
        options = TuningOptions(batch_size=4, holdout=4, iters=100, loss=loss)
        for seed in range(6):
            block, data, views, rounded, parametrizations = setting(options)
            inputs = data.inputs.clone()
            inputs[:, 0] = 100 * inputs[:1, 0]
            data = BlockData(
                "toy", block, inputs, inputs + block.down(torch.relu(block.up(inputs))), data.device
            )
            tune(data, views, rounded, parametrizations, options, torch.Generator().manual_seed(seed))
            error = (block(inputs) - data.targets).square().sum(-1) / data.targets.square().sum(-1)
            massive[loss] += float(error[-4:, 0].mean())
            others[loss] += float(error[-4:, 1:-1].mean())
    assert massive["balanced"] < 0.6 * massive["relative"]
    assert others["balanced"] < 0.92 * others["mse"]


def test_mixed_inputs_come_from_both_streams_in_the_share_that_was_asked() -> None:
    options = TuningOptions(batch_size=4, holdout=4, input_mixing=0.25)
    _, data, views, _, parametrizations = setting(options)
    original = data.inputs + 100
    mixed = replace(data, originals=original)
    trainer = _Trainer(mixed, views, parametrizations, options)
    rows = [3, 1, 2, 0]
    found = trainer._mixed(rows, trainer._mixture(4, torch.Generator().manual_seed(0)), [0, 1, 2, 3])
    from_original = found == original[rows]
    assert torch.equal(found[~from_original], data.inputs[rows][~from_original])
    assert float(from_original.float().mean()) == pytest.approx(0.25, abs=0.03)
    plain = _Trainer(data, views, parametrizations, options)
    assert torch.equal(
        plain._mixed(rows, plain._mixture(4, torch.Generator()), [0, 1, 2, 3]), data.inputs[rows]
    )


def test_a_result_worse_than_the_start_is_thrown_away() -> None:
    tuned, block, _ = run(iters=5, lr=9.0)
    assert tuned.kept == "start"
    assert tuned.loss_end == tuned.loss_start
    assert torch.equal(block.up.weight, tuned.weights["toy.up"].dequantize())


@pytest.mark.parametrize("keep", ["last", "best-fixed", "best-minibatch"])
def test_every_rule_of_keeping_improves_on_the_start(keep: str) -> None:
    tuned, _, _ = run(iters=60, keep=keep, judge_every=10)
    assert tuned.loss_end < 0.7 * tuned.loss_start


def test_best_fixed_is_never_worse_than_last() -> None:
    # A step size that never falls jumps about the optimum: the last iterate is not the best one.
    last, _, _ = run(iters=60, lr=0.03, lr_schedule="constant")
    best, _, _ = run(iters=60, lr=0.03, lr_schedule="constant", keep="best-fixed", judge_every=3)
    assert best.loss_end < last.loss_end


def test_no_iterations_keep_the_start() -> None:
    tuned, _, _ = run(iters=0)
    assert tuned.kept == "start"
    assert tuned.curve == []


def test_same_seed_same_integers() -> None:
    first, _, _ = run(iters=20)
    second, _, _ = run(iters=20)
    assert all(weight.equals(second.weights[name]) for name, weight in first.weights.items())


@pytest.mark.parametrize("optimizer", ["signsgd", "adamw"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_optimizers_and_schedules_tune(optimizer: str, schedule: str) -> None:
    # Steps that never shrink must be small from the start, or they jump between neighbours.
    steps = {"lr": 0.005, "minmax_lr": 0.002} if schedule == "constant" else {}
    tuned, _, _ = run(iters=60, optimizer=optimizer, lr_schedule=schedule, **steps)
    assert tuned.loss_end < 0.8 * tuned.loss_start


def test_accumulated_batches_have_the_gradient_of_one_large_batch() -> None:
    gradients = []
    for batch, accumulate in ((8, 1), (2, 4)):
        options = TuningOptions(batch_size=batch, gradient_accumulate_steps=accumulate, holdout=4)
        _, data, views, _, parametrizations = setting(options)
        trainer = _Trainer(data, views, parametrizations, options)
        _, found = trainer.gradients(torch.Generator().manual_seed(3))
        up = parametrizations["toy.up"]
        up.end_step(found["toy.up"](), make_optimizer("adamw", up.parameter_groups()))
        gradients.append(up.offset.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_samples_are_drawn_without_replacement() -> None:
    options = TuningOptions(batch_size=5, holdout=4)
    _, data, views, _, parametrizations = setting(options)
    trainer = _Trainer(data, views, parametrizations, options)
    generator = torch.Generator().manual_seed(4)
    seen = [row for _ in range(4) for row in trainer._next_batch(generator)]
    assert sorted(seen) == list(range(20))  # the last four of 24 are held out


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    options = TuningOptions(iters=3, batch_size=4)
    _, data, views, rounded, parametrizations = setting(options)
    data.targets[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="loss of toy became nan at iteration 0"):
        tune(data, views, rounded, parametrizations, options, torch.Generator())
