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

The fake-quantized weights are computed once per step and become the leaves of the block's own graph; their
gradients, summed over the micro-batches, are then sent through the parametrization once. So the cost of a
method's own mathematics does not grow with gradient accumulation, and any block runs unmodified.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from roundel.errors import NonFiniteError
from roundel.grid import QuantizedWeight
from roundel.methods.optimizer import make_optimizer, make_schedule
from roundel.methods.options import TuningOptions
from roundel.methods.parametrization import Parametrization
from roundel.model.linears import LinearView

# Keeps the gradients of an fp16 autocast pass out of the subnormal range; a power of two, so exact.
_LOSS_SCALE = 2.0**14

# How much of the loss counts tokens by their relative error; the rest is the mean squared error.
_RELATIVE_SHARE = {"relative": 1.0, "balanced": 0.5, "mse": 0.0}


@dataclass(frozen=True)
class BlockData:
    """What a block is tuned on.

    Attributes:
        name: of the block, for messages.
        run: the block on a batch of inputs `[B, S, H] -> [B, S, H]`, on the device, autocast where wanted.
        inputs: `[N, S, H]`, on any device.
        targets: `[N, S, H]`, the unquantized block's outputs.
        device: where `run` computes.
        originals: `[N, S, H]`, the unquantized model's inputs, where `input_mixing` wants them.
    """

    name: str
    run: Callable[[torch.Tensor], torch.Tensor]
    inputs: torch.Tensor
    targets: torch.Tensor
    device: torch.device
    originals: torch.Tensor | None = None


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
    for step in range(options.iters):
        if options.keep == "best-fixed" and step and step % options.judge_every == 0:
            candidate = trainer.export()
            best.offer(step, trainer.judge(candidate), candidate)
        loss = trainer.gradients(generator)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss of {data.name} became {loss} at iteration {step}; finite losses are wanted: "
                "lower the step sizes, or set amp=float32"
            )
        if options.keep == "best-minibatch" and loss < best.loss:
            best.offer(step, loss, trainer.export())
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        for parametrization in trainer.parametrizations.values():
            parametrization.project()
        result.curve.append(loss)
        on_step(loss)

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
        count = data.inputs.shape[0]
        self.trained = count - min(options.holdout, max(count // 4, 0 if count == 1 else 1))
        # One sample alone is trained and judged on: there is nothing to hold out.
        self.held = range(self.trained, count) if self.trained < count else range(count)
        self.mean_power = float(data.targets[:, :-1].float().square().mean().clamp_min(1e-30))
        self.relative = _RELATIVE_SHARE[options.loss]
        self.mixing = options.input_mixing
        self.order: list[int] = []

    def export(self) -> dict[str, QuantizedWeight]:
        return {name: p.export() for name, p in self.parametrizations.items()}

    def write(self, weights: Mapping[str, QuantizedWeight]) -> None:
        for name, weight in weights.items():
            self.linears[name].write(weight.dequantize())

    @torch.no_grad()
    def judge(self, weights: Mapping[str, QuantizedWeight]) -> float:
        """Relative loss of the integers on the fixed held-out samples."""
        self.write(weights)
        total = 0.0
        for first in range(0, len(self.held), self.batch_size):
            rows = list(self.held[first : first + self.batch_size])
            total += float(self._loss(rows, self.data.inputs[rows])) * len(rows)
        return total / len(self.held)

    def gradients(self, generator: torch.Generator) -> float:
        """Leave the gradients of one step in the parameters; return its loss."""
        weights = {name: p() for name, p in self.parametrizations.items()}
        for name, weight in weights.items():
            self.linears[name].write(weight.detach())
            self.linears[name].parameter.requires_grad_(True)
        total = 0.0
        for _ in range(self.accumulate):
            rows = self._next_batch(generator)
            loss = self._loss(rows, self._mixed(rows, generator)) / self.accumulate
            total += float(loss.detach())
            (loss * _LOSS_SCALE).backward()
        grads = [self.linears[name].take_gradient() for name in weights]
        torch.autograd.backward(list(weights.values()), grads)
        return total

    def _mixed(self, rows: list[int], generator: torch.Generator) -> torch.Tensor:
        """The inputs of training, some of them the unquantized model's."""
        inputs = self.data.inputs[rows]
        if self.data.originals is None:
            return inputs
        original = torch.rand(inputs.shape, generator=generator) < self.mixing
        return torch.where(original.to(inputs.device), self.data.originals[rows], inputs)

    def _loss(self, rows: list[int], inputs: torch.Tensor) -> torch.Tensor:
        targets = self.data.targets[rows, :-1].to(self.data.device)
        # The last token's output predicts nothing that training saw; the reference leaves it out too.
        error = self.data.run(inputs.to(self.data.device))[:, :-1].float() - targets.float()
        power = targets.float().square().mean(-1, keepdim=True).clamp_min(1e-30)
        weight = self.relative / power + (1 - self.relative) / self.mean_power
        return (error.square() * weight).mean()

    def _next_batch(self, generator: torch.Generator) -> list[int]:
        """Samples without replacement, reshuffled when they run out; full batches only."""
        size = min(self.batch_size, self.trained)
        if len(self.order) < size:
            self.order = torch.randperm(self.trained, generator=generator).tolist()
        rows, self.order = self.order[:size], self.order[size:]
        return rows
