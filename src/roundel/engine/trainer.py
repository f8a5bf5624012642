"""One trainer for every learned method: tune all Linears of a block jointly on the block's output.

    minimise over the parameters   mean_t  |block(X; W^)_t - Y_t|^2  (1/2 1/|Y_t|^2 + 1/2 1/mean_t |Y_t|^2)

X are the block's inputs, Y the unquantized block's outputs, t runs over the tokens. Every reader of the residual stream
normalizes each token by its own size, so a token's relative error is what later blocks see: the first half. The papers'
plain mean squared error (`loss: mse`), the second half, is ruled by the few tokens with massive activations: alone, it
made late blocks of SmolLM2-135M worse than rounding. Without it (`loss: relative`) those tokens hardly count: tuned so,
a block of the same model lost the massive activation of the first token, on which later attention leans, for less
error elsewhere, and the model's KL rose by half.

A method supplies one parametrization per Linear: start values, a differentiable fake-quantized weight, the
final codes. Everything else is here.

The fake-quantized weights are computed once per step and become the leaves of the block's own graph, without a copy:
the modules compute with these very tensors, which have the type that the block multiplies in, so that nothing is cast.
Their gradients, summed over the micro-batches, are then sent through the parametrization once. So the cost of a
method's own mathematics does not grow with gradient accumulation, and any block runs unmodified.

Several ranks tune a block together: each computes the gradients of its own samples of a minibatch, and their sum goes
through everybody's parametrization, so that all take the same step. A minibatch of B takes one sample of each residue
modulo B. So it spreads over the data, and W ranks, which own residues modulo W, have equal parts of it where W divides
B. Who computes is the only difference: minibatches, steps and decisions do not depend on the number of ranks, sums of
gradients do in their last bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR

from roundel.errors import NonFiniteError
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.methods.optimizer import make_optimizer, make_schedule
from roundel.methods.options import TuningOptions
from roundel.methods.parametrization import Parametrization
from roundel.model.linears import LinearView
from roundel.system.ranks import ALONE, Ranks

# Keeps the gradients of an fp16 autocast pass out of the subnormal range; a power of two, so exact.
_LOSS_SCALE = 2.0**14

# How much of the loss counts tokens by their relative error; the rest is the mean squared error.
_RELATIVE_SHARE = {"relative": 1.0, "balanced": 0.5, "mse": 0.0}


class Samples(Protocol):
    """`[N, S, H]`, wherever they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, H)."""
        ...

    def __getitem__(self, rows: list[int]) -> torch.Tensor:
        """Some of them, `[n, S, H]`, on any device."""
        ...


@dataclass(frozen=True)
class BlockData:
    """What a block is tuned on.

    Attributes:
        name: of the block, for messages.
        run: the block on a batch of inputs `[B, S, H] -> [B, S, H]`, on the device, autocast where wanted.
        inputs: of the block, this rank's samples.
        targets: the unquantized block's outputs.
        device: where `run` computes.
        dtype: in which `run` multiplies.
        originals: the unquantized model's inputs, where `input_mixing` wants them.
        ranks: that tune the block together.
        samples: how many all ranks have; None: as many as there are inputs.
    """

    name: str
    run: Callable[[torch.Tensor], torch.Tensor]
    inputs: Samples
    targets: Samples
    device: torch.device
    dtype: torch.dtype = torch.float32
    originals: Samples | None = None
    ranks: Ranks = ALONE
    samples: int | None = None

    @property
    def count(self) -> int:
        """Samples of all ranks."""
        return self.inputs.shape[0] if self.samples is None else self.samples


@dataclass(frozen=True)
class Snapshot:
    """Everything that decides how tuning goes on after some step.

    Attributes:
        step: how many steps are done.
        tensors: parameters, the optimizer's and the generator's state, by name.
        numbers: the rest as plain data.
        best: the integers that would be kept if nothing better came.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    numbers: dict[str, Any]
    best: dict[str, QuantizedWeight]


class SnapshotStore(Protocol):
    """Where the state of tuning that may be interrupted is written down."""

    def latest(self) -> Snapshot | None:
        """Where an earlier process got to."""
        ...

    def after_step(self, snapshot: Callable[[], Snapshot]) -> None:
        """A step is done; take a snapshot if it is time. May raise, to end the work here."""
        ...


@dataclass
class Tuned:
    """The result of tuning one block. Losses are squared errors over squared outputs."""

    weights: dict[str, QuantizedWeight]
    loss_start: float
    loss_end: float
    kept: str
    curve: list[float] = field(default_factory=list)


def tune(
    data: BlockData,
    linears: Mapping[str, LinearView],
    starts: Mapping[str, QuantizedWeight],
    parametrizations: Mapping[str, Parametrization],
    options: TuningOptions,
    generator: torch.Generator,
    on_step: Callable[[float], None] = lambda loss: None,
    snapshots: SnapshotStore | None = None,
) -> Tuned:
    """Tune a block's Linears.

    Args:
        data: the block, its inputs and targets.
        linears: the Linears to tune; on return they hold the weights of the result.
        starts: the untuned integers, the candidate that always competes.
        parametrizations: one per Linear, at their start values.
        options: iterations, batch, optimizer, what to keep.
        generator: draws the minibatches.
        on_step: told the loss of every step.
        snapshots: where an earlier process was interrupted, tuning goes on.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    trainer = _Trainer(data, linears, parametrizations, options)
    loss_start = trainer.judge(starts)
    result = Tuned(dict(starts), loss_start, loss_start, "start")
    if not options.iters or not parametrizations:
        trainer.write(result.weights)
        return result

    groups = [group for p in parametrizations.values() for group in p.parameter_groups()]
    optimizer = make_optimizer(options.optimizer, groups)
    schedule = make_schedule(optimizer, options.lr_schedule, options.iters)
    best = _Best(options.keep)
    state = _State(trainer, optimizer, schedule, best, generator, result.curve)
    first = state.restore(snapshots.latest() if snapshots else None)
    for loss in result.curve:
        on_step(loss)
    for step in range(first, options.iters):
        if options.keep == "best-fixed" and step and step % options.judge_every == 0:
            candidate = trainer.export()
            best.offer(step, trainer.judge(candidate), candidate)
        loss, gradients = trainer.gradients(generator)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss of {data.name} became {loss} at iteration {step}; finite losses are expected: "
                "lower the step sizes, or set amp=float32"
            )
        if options.keep == "best-minibatch" and loss < best.loss:
            best.offer(step, loss, trainer.export())
        for name, parametrization in trainer.parametrizations.items():
            # One at a time: a gradient of the weight may go before the next Linear's parameters get theirs.
            parametrization.end_step(gradients.pop(name)(), optimizer)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        for parametrization in trainer.parametrizations.values():
            parametrization.project()
        result.curve.append(loss)
        on_step(loss)
        if snapshots is not None:
            snapshots.after_step(state.snapshot)

    last = trainer.export()
    loss_last = trainer.judge(last)
    if options.keep != "best-minibatch":
        best.offer(options.iters, loss_last, last)
    loss_end = loss_last if best.weights is last else trainer.judge(best.weights)
    if loss_end < loss_start:
        result.weights, result.loss_end, result.kept = best.weights, loss_end, f"iteration {best.step}"
    trainer.write(result.weights)
    return result


@dataclass
class _Best:
    """The candidate that is to be kept, by the rule of `keep`."""

    keep: str
    loss: float = float("inf")
    step: int = 0
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)

    def offer(self, step: int, loss: float, weights: dict[str, QuantizedWeight]) -> None:
        if self.keep == "last" or loss < self.loss or not self.weights:
            self.loss, self.step, self.weights = loss, step, weights


@dataclass
class _State:
    """The parts of a run whose state goes into a snapshot."""

    trainer: "_Trainer"
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    best: _Best
    generator: torch.Generator
    curve: list[float]

    def snapshot(self) -> Snapshot:
        tensors = {"generator": self.generator.get_state()}
        for name, parametrization in self.trainer.parametrizations.items():
            for key, tensor in parametrization.state_dict().items():
                tensors[f"parameter.{name}.{key}"] = tensor
        for index, entries in self.optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        numbers = {
            "order": self.trainer.order,
            "curve": self.curve,
            "best": {"loss": self.best.loss, "step": self.best.step},
        }
        return Snapshot(len(self.curve), tensors, numbers, self.best.weights)

    def restore(self, found: Snapshot | None) -> int:
        """Go back to a snapshot; returns the number of steps that are done."""
        if found is None:
            return 0
        for name, parametrization in self.trainer.parametrizations.items():
            state = {key: found.tensors[f"parameter.{name}.{key}"] for key in parametrization.state_dict()}
            parametrization.load_state_dict(state)
        optimizer = self.optimizer.state_dict()
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in found.tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                entries.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({**optimizer, "state": entries})
        # The step size is a function of the step alone.
        self.schedule.last_epoch = found.step
        schedule = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, (lr, factor) in zip(self.optimizer.param_groups, schedule, strict=True):
            group["lr"] = lr * factor(found.step)
        self.generator.set_state(found.tensors["generator"])
        self.trainer.order = list(found.numbers["order"])
        self.curve[:] = found.numbers["curve"]
        self.best.loss, self.best.step = found.numbers["best"]["loss"], found.numbers["best"]["step"]
        self.best.weights = found.best
        return found.step


class _Trainer:
    def __init__(
        self,
        data: BlockData,
        linears: Mapping[str, LinearView],
        parametrizations: Mapping[str, Parametrization],
        options: TuningOptions,
    ) -> None:
        self.data = data
        self.linears = linears
        self.parametrizations = parametrizations
        self.batch_size = options.batch_size
        self.accumulate = options.gradient_accumulate_steps
        self.ranks = data.ranks
        # Sums of several gradients are made in float32.
        self.dtype = data.dtype if self.accumulate == 1 and self.ranks.size == 1 else torch.float32
        count = data.count
        self.trained = count - min(options.holdout, max(count // 4, 0 if count == 1 else 1))
        # One sample alone is trained and judged on: there is nothing to hold out.
        self.held = range(self.trained, count) if self.trained < count else range(count)
        self.mean_power = self._mean_power()
        self.relative = _RELATIVE_SHARE[options.loss]
        self.mixing = options.input_mixing
        self.order: list[int] = []

    def _mean_power(self) -> float:
        """Mean squared output over all samples, one at a time: a stream may be larger than memory."""
        own = range(self.data.targets.shape[0])
        powers = [float(self.data.targets[[row]][:, :-1].float().square().mean()) for row in own]
        total = sum(self.ranks.in_order(powers, self.ranks.own(self.data.count), self.data.count))
        return max(total / self.data.count, 1e-30)

    def export(self) -> dict[str, QuantizedWeight]:
        return {name: p.export() for name, p in self.parametrizations.items()}

    def write(self, weights: Mapping[str, QuantizedWeight]) -> None:
        for name, weight in weights.items():
            self.linears[name].hold(weight.dequantize())

    @torch.no_grad()
    def judge(self, weights: Mapping[str, QuantizedWeight]) -> float:
        """Relative loss of the integers on the fixed held-out samples."""
        self.write(weights)
        losses: list[float] = []
        places, own = self.ranks.mine(self.held)
        for first in range(0, len(own), self.batch_size):
            rows = own[first : first + self.batch_size]
            losses += self._losses(rows, self.data.inputs[rows]).tolist()
        return sum(self.ranks.in_order(losses, places, len(self.held))) / len(self.held)

    def gradients(self, generator: torch.Generator) -> tuple[float, dict[str, Callable[[], torch.Tensor]]]:
        """The loss of one step, and the gradients of the weights, as they come from the other ranks."""
        for name, parametrization in self.parametrizations.items():
            self.linears[name].hold(parametrization.begin_step(self.dtype))
            self.linears[name].want_gradient()
        total = 0.0
        for _ in range(self.accumulate):
            batch = self._next_batch(generator)
            places, rows = self.ranks.mine(batch)
            inputs = self._mixed(rows, self._mixture(len(batch), generator), places)
            if not rows:
                continue
            loss = self._losses(rows, inputs).sum() / (len(batch) * self.accumulate)
            total += float(loss.detach())
            (loss * _LOSS_SCALE).backward()
        summed = {
            name: self.ranks.begin_sum(self.linears[name].take_gradient()) for name in self.parametrizations
        }
        return self.ranks.total(total), summed

    def _mixture(self, size: int, generator: torch.Generator) -> torch.Tensor | None:
        """Which inputs of a minibatch are the unquantized model's."""
        if self.data.originals is None:
            return None
        return (
            torch.rand(size, *self.data.inputs.shape[1:], generator=generator, dtype=torch.float32)
            < self.mixing
        )

    def _mixed(self, rows: list[int], mixture: torch.Tensor | None, places: list[int]) -> torch.Tensor:
        """The inputs of training: this rank's rows, which are at these places of the minibatch."""
        inputs = self.data.inputs[rows]
        if self.data.originals is None or mixture is None:
            return inputs
        return torch.where(mixture[places].to(inputs.device), self.data.originals[rows], inputs)

    def _losses(self, rows: list[int], inputs: torch.Tensor) -> torch.Tensor:
        """The loss of each sample, `[n]`."""
        targets = self.data.targets[rows].to(self.data.device)[:, :-1]
        # The last token's output predicts nothing that training saw; the reference leaves it out too.
        error = self.data.run(inputs.to(self.data.device))[:, :-1].float() - targets.float()
        power = targets.float().square().mean(-1, keepdim=True).clamp_min(1e-30)
        weight = self.relative / power + (1 - self.relative) / self.mean_power
        return (error.square() * weight).mean((1, 2))

    def _next_batch(self, generator: torch.Generator) -> list[int]:
        """Samples without replacement, one of each residue, reshuffled when they run out; full batches only."""
        size = min(self.batch_size, self.trained)
        if not self.order:
            # What is accumulated is one minibatch, whether it comes in one part or in several.
            together = size * self.accumulate if size * self.accumulate <= self.trained else size
            turns = self.trained // together
            strata = [torch.arange(residue, self.trained, together) for residue in range(together)]
            shuffled = [s[torch.randperm(len(s), generator=generator)[:turns]] for s in strata]
            self.order = torch.stack(shuffled, 1).flatten().tolist()
        rows, self.order = self.order[:size], self.order[size:]
        return rows
