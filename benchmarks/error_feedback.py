"""Seconds of GPTQ and SpQR for the Linears of a Llama-2-7B block, against plain loops and against the bound.

    python benchmarks/error_feedback.py                 # 4096 x 4096 and 4096 x 11008
    python benchmarks/error_feedback.py --whole-block   # all seven Linears, Hessians shared as in the model

Random weights and correlated random inputs: only time is measured. What is compared, in turns, in one run:

    ours      factorization and loop as the library runs them
    plain     the textbook in torch: Cholesky factor of the inverse, rank-one updates inside blocks of 128 columns,
              a matrix product behind each block; for SpQR with the leave-one-out of every member of a group
    rank-one  no blocks: every column updates all columns to its right (4096 x 4096 only, first 256 columns, scaled)
    bound     one matrix product with the loop's multiply-adds, out * in * in / 2, at the speed of this machine, and
              one Cholesky factorization
"""

import time
from argparse import ArgumentParser
from collections.abc import Callable
from statistics import median

import torch

from roundel.engine.moments import Hessian
from roundel.grid.scheme import Scheme
from roundel.methods.gptq import gptq
from roundel.methods.options import HessianOptions
from roundel.methods.spqr import spqr

GPTQ = Scheme(bits=4, group_size=128)
SPQR = Scheme(bits=3, group_size=16, round_zero=False, scale_bits=3, zero_bits=3)
BLOCK = (4096, 11008)
BLOCK_COLUMNS = 128
RANK_ONE_COLUMNS = 256


def main() -> None:
    """Time everything and print a Markdown table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=BLOCK[0])
    parser.add_argument("--intermediate", type=int, default=BLOCK[1])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--whole-block", action="store_true")
    arguments = parser.parse_args()
    hidden, wide = arguments.hidden, arguments.intermediate
    if arguments.whole_block:
        time_block(hidden, wide)
        return
    print("| out x in | method | ours, s | plain, s | ratio | rank-one, s | bound, s | ours / bound |")
    print("|---" * 8 + "|")
    for out, width in ((hidden, hidden), (hidden, wide)):
        compare(out, width, arguments.repeats)


def compare(out: int, width: int, repeats: int) -> None:
    """One shape: every method in turns."""
    weight, hessian = problem(out, width)
    runs: dict[str, Callable[[], float]] = {
        "gptq": lambda: seconds(lambda: gptq(weight, hessian, GPTQ, HessianOptions(), "minmax")),
        "gptq searched": lambda: seconds(lambda: gptq(weight, hessian, GPTQ, HessianOptions(), "search")),
        "gptq plain": lambda: seconds(lambda: plain_gptq(weight, hessian, GPTQ)),
        "spqr": lambda: seconds(lambda: spqr(weight, hessian, SPQR, HessianOptions(outliers=0.01), "minmax")),
        "spqr searched": lambda: seconds(
            lambda: spqr(weight, hessian, SPQR, HessianOptions(outliers=0.01), "search")
        ),
        "spqr plain": lambda: seconds(lambda: plain_spqr(weight, hessian, SPQR, threshold=0.2)),
        "bound": lambda: bound(out, width, hessian),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    rank_one = f"{rank_one_seconds(weight):.1f}" if out == width else ""
    found = {name: median(values) for name, values in times.items()}
    for name in ("gptq", "gptq searched", "spqr", "spqr searched"):
        ours, plain = found[name], found[f"{name.split()[0]} plain"]
        print(
            f"| {out} x {width} | {name} | {ours:.1f} | {plain:.1f} | {plain / ours:.1f} | "
            f"{rank_one} | {found['bound']:.2f} | {ours / found['bound']:.1f} |",
            flush=True,
        )


def time_block(hidden: int, wide: int) -> None:
    """All Linears of a block, and the Hessians of 8 x 2048 tokens."""
    inputs = {
        hidden: 3,
        wide: 1,
    }  # distinct inputs by width: attention, output projection, MLP; down projection
    began = time.perf_counter()
    hessians = {}
    for width, count in inputs.items():
        hessian = Hessian()
        for _ in range(8 * count):
            hessian.add(torch.randn(2048, width))
        hessians[width] = hessian.mean()
    print(f"Hessians of 16384 tokens: {time.perf_counter() - began:.1f} s")
    shapes = [(hidden, hidden)] * 4 + [(wide, hidden)] * 2 + [(hidden, wide)]
    for name, method, scheme, options in (
        ("gptq-w4g128", gptq, GPTQ, HessianOptions()),
        ("spqr, 3 bit, 1 % outliers", spqr, SPQR, HessianOptions(outliers=0.01)),
    ):
        began = time.perf_counter()
        for out, width in shapes:
            method(torch.randn(out, width), hessians[width], scheme, options, "search")
        print(f"{name}: {time.perf_counter() - began:.1f} s for the seven Linears", flush=True)


def problem(out: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    hessian = Hessian()
    mixing = torch.randn(256, width, generator=generator)
    for _ in range(4):
        rows = torch.randn(2048, 256, generator=generator) @ mixing / 16
        hessian.add(rows + torch.randn(2048, width, generator=generator))
    return torch.randn(out, width, generator=generator), hessian.mean()


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bound(out: int, width: int, hessian: torch.Tensor) -> float:
    """The loop's multiply-adds as one matrix product, and one Cholesky factorization."""
    left, right = torch.randn(out, width), torch.randn(width, width // 2)
    damped = hessian + hessian.diagonal().mean() * torch.eye(width)
    return seconds(lambda: left @ right) + seconds(lambda: torch.linalg.cholesky(damped))


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the damped inverse, the way the paper says it."""
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def minmax(group: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and real zero point of rows `[out, g]`."""
    low, high = group.amin(1), group.amax(1)
    scale = (high - low) / levels
    return scale, -low / scale


def plain_gptq(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """GPTQ in blocks of 128 columns."""
    upper, present, found = inverse_factor(hessian), weight.clone(), torch.empty_like(weight)
    levels, group = scheme.levels, scheme.group_size
    for first in range(0, weight.shape[1], BLOCK_COLUMNS):
        last = min(first + BLOCK_COLUMNS, weight.shape[1])
        errors = torch.empty(weight.shape[0], last - first)
        for j in range(first, last):
            if j % group == 0:
                scale, zero = minmax(present[:, j : j + group], levels)
                zero = zero.round()
            column = present[:, j]
            found[:, j] = scale * (((column / scale).round() + zero).clamp(0, levels) - zero)
            error = (column - found[:, j]) / upper[j, j]
            present[:, j:last] -= error[:, None] * upper[j, j:last]
            errors[:, j - first] = error
        present[:, last:] -= errors @ upper[first:last, last:]
    return found


def plain_spqr(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme, threshold: float) -> torch.Tensor:
    """SpQR in one pass: leave-one-out for every member of every group, statistics quantized by tiles."""
    upper, present, found = inverse_factor(hessian), weight.clone(), torch.empty_like(weight)
    levels, group, rows = scheme.levels, scheme.group_size, scheme.tile_rows
    limit = threshold * (weight.var(0) / upper.diagonal().square()).mean()

    def second_level(values: torch.Tensor) -> torch.Tensor:
        tiles = values.view(-1, rows)
        step, offset = minmax(tiles, 7)
        codes = (tiles / step[:, None] + offset[:, None]).round().clamp(0, 7)
        return (step[:, None] * (codes - offset[:, None])).flatten()

    def squared(
        values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        codes = (values / scale[..., None] + zero[..., None]).round().clamp(0, levels)
        return ((scale[..., None] * (codes - zero[..., None]) - values) / steps).square()

    others = torch.stack([torch.cat([torch.arange(k), torch.arange(k + 1, group)]) for k in range(group)])
    for first in range(0, weight.shape[1], BLOCK_COLUMNS):
        last = min(first + BLOCK_COLUMNS, weight.shape[1])
        errors = torch.empty(weight.shape[0], last - first)
        for j in range(first, last):
            if j % group == 0:
                values, steps = present[:, j : j + group], upper.diagonal()[j : j + group]
                base = squared(values, *minmax(values, levels), steps).sum(1)
                left = values[:, others]  # [out, g, g - 1]
                scales, zeros = minmax(left.reshape(-1, group - 1), levels)
                shape = left.shape[:2]
                rest = squared(left, scales.view(shape), zeros.view(shape), steps[others]).sum(2)
                outlier = base[:, None] - rest > limit
                mean = (values * ~outlier).sum(1) / (~outlier).sum(1).clamp_min(1)
                scale, _ = minmax(torch.where(outlier, mean[:, None], values), levels)
                low = torch.where(outlier, mean[:, None], values).amin(1)
                scale = second_level(scale)
                zero = second_level(-low / scale)
            column = present[:, j]
            rounded = scale * ((column / scale + zero).round().clamp(0, levels) - zero)
            kept = ((column - rounded) / upper[j, j]).square() > limit
            found[:, j] = torch.where(kept, column, rounded)
            error = (column - found[:, j]) / upper[j, j]
            present[:, j:last] -= error[:, None] * upper[j, j:last]
            errors[:, j - first] = error
        present[:, last:] -= errors @ upper[first:last, last:]
    return found


def rank_one_seconds(weight: torch.Tensor) -> float:
    """Time of a loop that updates the whole rest of the matrix after each column, from its first columns."""
    present, row = weight.clone(), torch.randn(weight.shape[1])

    def loop() -> None:
        for j in range(RANK_ONE_COLUMNS):
            error = present[:, j] - present[:, j].round()
            present[:, j + 1 :] -= error[:, None] * row[j + 1 :]

    # Later columns have less to their right: half of the matrix on average.
    full = weight.shape[1] - RANK_ONE_COLUMNS / 2
    return seconds(loop) * weight.shape[1] / RANK_ONE_COLUMNS * (weight.shape[1] / 2) / full


if __name__ == "__main__":
    main()
