"""One step of the trainer, beside its block alone and beside that block's matrix products alone.

    python benchmarks/step.py                                  # two shapes, two types, 1 and 2 threads
    python benchmarks/step.py --shapes 576x1536 --amp float32 --threads 2 --method lrq

A Llama block of random weights on random inputs of 4 x 256 tokens: only time is measured. In turns, in one process:

    step       of the trainer, as a run makes it: fake-quantized weights, the block forwards and backwards, the
               gradients of rounding, the optimizer
    block      forwards and backwards, with weights that are there
    products   those of its Linears: x W^T, dY W and dY^T x, in the type in which the block multiplies
"""

import time
import timeit
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import roundel
from roundel.engine.parametrize import make_parametrization
from roundel.engine.target import round_to_nearest
from roundel.engine.trainer import BlockData, tune
from roundel.grid.scheme import Scheme
from roundel.model.block_call import first_of
from roundel.model.linears import LinearView, linears_in
from roundel.system.devices import autocast_dtype, autocasting

BATCH, TOKENS, SAMPLES = 4, 256, 16
CPU = torch.device("cpu")
GRID = {"bits": 3, "group_size": 64}
# Width of the block to its heads, and to those of keys and values.
HEADS = {576: (9, 3), 2048: (32, 4)}


@dataclass
class Problem:
    """A block, what goes in and what comes out."""

    linears: dict[str, LinearView]
    run: Callable[[torch.Tensor], torch.Tensor]
    inputs: torch.Tensor
    targets: torch.Tensor
    amp: torch.dtype | None


def main() -> None:
    """Print a table."""
    arguments = parse()
    print("| block | type | threads | products, ms | block, ms | step, ms | step / products | step / block |")
    print("|---" * 8 + "|", flush=True)
    for shape in arguments.shapes:
        for amp in arguments.amp:
            for threads in arguments.threads:
                torch.set_num_threads(threads)
                show(shape, amp, threads, arguments)


def show(shape: str, amp: str, threads: int, arguments: Namespace) -> None:
    """One row: the three in turns."""
    problem = make_problem(shape, amp)
    recipe = roundel.Recipe.create(
        method=arguments.method, **GRID, start="minmax", iters=arguments.steps, batch_size=BATCH,
        amp=amp,
    )  # fmt: skip
    times: dict[str, list[float]] = {"products": [], "block": [], "step": []}
    for _ in range(arguments.rounds):
        times["products"].append(products_seconds(problem, arguments.steps))
        times["block"].append(block_seconds(problem, arguments.steps))
        times["step"].append(step_seconds(problem, recipe))
    products, block, step = (1e3 * min(times[name]) for name in ("products", "block", "step"))
    print(
        f"| {shape} | {amp} | {threads} | {products:.1f} | {block:.1f} | {step:.1f} | {step / products:.2f} | "
        f"{step / block:.2f} |",
        flush=True,
    )


def make_problem(shape: str, amp: str) -> Problem:
    """A block of that width and inner width."""
    width, inner = (int(number) for number in shape.split("x"))
    heads, of_keys = HEADS.get(width, (width // 64, width // 64))
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_attention_heads=heads, num_key_value_heads=of_keys,
        num_hidden_layers=1,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    layer = LlamaDecoderLayer(config, 0).eval().requires_grad_(False)
    inputs = torch.randn(SAMPLES, TOKENS, width)
    positions = LlamaRotaryEmbedding(config)(inputs, torch.arange(TOKENS)[None])
    chosen = autocast_dtype(CPU, amp)

    def run(hidden: torch.Tensor) -> torch.Tensor:
        with autocasting(CPU, chosen):
            return first_of(layer(hidden, position_embeddings=positions))

    with torch.no_grad():
        targets = torch.cat([run(inputs[i : i + BATCH]) for i in range(0, SAMPLES, BATCH)])
    linears = {view.name: view for view in linears_in(layer, "")}
    return Problem(linears, run, inputs, targets, chosen)


def step_seconds(problem: Problem, recipe: roundel.Recipe) -> float:
    """Median of the trainer's steps."""
    originals = {name: view.weight.clone() for name, view in problem.linears.items()}
    generator = torch.Generator().manual_seed(0)
    targets = {
        name: round_to_nearest(view, Scheme(**GRID), "minmax", None) for name, view in problem.linears.items()
    }
    parametrizations = {
        name: make_parametrization(target, recipe, generator) for name, target in targets.items()
    }
    data = BlockData("block", problem.run, problem.inputs, problem.targets, CPU, problem.amp or torch.float32)
    starts = {name: target.rounded for name, target in targets.items()}
    ends: list[float] = []
    tune(
        data, problem.linears, starts, parametrizations, recipe, generator,
        on_step=lambda _: ends.append(time.perf_counter()),
    )  # fmt: skip
    for name, weight in originals.items():
        problem.linears[name].hold(weight)
    return median(after - before for before, after in pairwise(ends))


def block_seconds(problem: Problem, steps: int) -> float:
    """Median of passes forwards and backwards, with the gradients of all weights."""
    for view in problem.linears.values():
        view.want_gradient()

    def once() -> None:
        problem.run(problem.inputs[:BATCH]).float().sum().backward()
        for view in problem.linears.values():
            view.parameter.grad = None

    try:
        return median(timeit.repeat(once, number=1, repeat=steps))
    finally:
        for view in problem.linears.values():
            view.forget_gradient()


def products_seconds(problem: Problem, steps: int) -> float:
    """Median of the three products of every Linear, one Linear after the other."""
    dtype, rows = problem.amp or torch.float32, BATCH * TOKENS
    operands = []
    for view in problem.linears.values():
        out, width = view.shape
        operands.append(
            (view.weight.to(dtype), torch.randn(rows, width).to(dtype), torch.randn(rows, out).to(dtype))
        )

    def once() -> None:
        for weight, x, dy in operands:
            torch.mm(x, weight.t())
            torch.mm(dy, weight)
            torch.mm(dy.t(), x)

    return median(timeit.repeat(once, number=1, repeat=steps))


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["576x1536", "2048x5632"])
    parser.add_argument("--amp", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--method", default="autoround")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
