"""Products of one matrix with a few tokens: our kernels, torch's operators and llama.cpp's, in turns in one run.

    python benchmarks/products.py [--llama PYTHON] [--shapes 4096x4096 11008x4096] [--tokens 1 8] [--threads 1 2]
                                   [--set avx2]

PYTHON is that of an environment with the package llama-cpp-python (ggml_products.py is started there). Every contender
multiplies with copies of its matrix, one after the other, after reading twice as much as the largest cache holds; all
of them take turns, `--rounds` times, and the least time of each counts. "of memory" is its rate of bytes over what
reading memory reaches here with as many threads, measured in the same rounds (system/bandwidth.py).

Codes and scales are random: speed does not depend on them. A matrix's bytes are all that its product reads.
"""

import json
import subprocess
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from roundel.compiled.extension import instruction_sets
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.two_level import Tiles
from roundel.runtime.kernels import Handle
from roundel.runtime.modes import MODES, Mode
from roundel.runtime.packed_weight import PackedWeight
from roundel.system.bandwidth import ReadBandwidth, buffer_bytes, largest_cache

# All copies of a matrix together: so many that taking the time costs nothing.
BYTES = 80e6
SPQR = {"bits": 3, "group_size": 16, "scale_bits": 3, "zero_bits": 3, "round_zero": False}
OURS: dict[str, tuple[dict[str, Any], float]] = {
    "W2 g128": ({"bits": 2, "group_size": 128}, 0.0),
    "W3 g128": ({"bits": 3, "group_size": 128}, 0.0),
    "W4 g128": ({"bits": 4, "group_size": 128}, 0.0),
    "W4 g32 symmetric": ({"bits": 4, "group_size": 32, "sym": True}, 0.0),
    "q4_k": ({"type": "q4_k"}, 0.0),
    "q6_k": ({"type": "q6_k"}, 0.0),
    "W5 g128": ({"bits": 5, "group_size": 128}, 0.0),
    "W6 g128": ({"bits": 6, "group_size": 128}, 0.0),
    "W8 g128": ({"bits": 8, "group_size": 128}, 0.0),
    "SpQR W3 g16": (SPQR, 0.0),
    "SpQR W3 g16, 1 % outliers": (SPQR, 0.01),
}
# Twice what the largest cache holds: reading it leaves nothing else there.
SWEEP = torch.ones(2 * max(largest_cache(), 1 << 25) // 4)
# After torch's operators their threads go on looking for work for a while.
REST_SECONDS = 0.02
LLAMA = ("f32", "q4_0", "q4_k", "q8_0", "q2_k", "q3_k")
LLAMA_BITS = {"f32": 32, "q4_0": 4.5, "q4_k": 4.5, "q8_0": 8.5, "q2_k": 2.625, "q3_k": 3.4375}


@dataclass
class Contender:
    """One way to multiply.

    Attributes:
        name: in the table.
        bytes: of one matrix.
        run: seconds of one product, measured now.
        times: what it took, in every round.
    """

    name: str
    bytes: float
    run: Callable[[], float]
    times: list[float] = field(default_factory=list)


def main() -> None:
    """Print a table for every shape, number of tokens and of threads."""
    arguments = parse()
    llama = Llama(arguments.llama) if arguments.llama else None
    print(f"kernels: {arguments.set or instruction_sets()[0]}; torch {torch.__version__}\n")
    for shape in arguments.shapes:
        rows, columns = (int(n) for n in shape.split("x"))
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for tokens in arguments.tokens:
                show(arguments, rows, columns, tokens, threads, llama)


def show(
    arguments: Namespace, rows: int, columns: int, tokens: int, threads: int, llama: "Llama | None"
) -> None:
    """Measure and print one table."""
    contenders = list(ours(rows, columns, tokens, arguments.set)) + list(torchs(rows, columns, tokens))
    if llama is not None:
        contenders += llama.contenders(rows, columns, tokens, threads)
    memory, reader = [], ReadBandwidth(buffer_bytes())
    for _ in range(arguments.rounds):
        memory.append(reader.measure() / 1e9)
        for contender in contenders:
            contender.times.append(contender.run())
    print(
        f"## {rows} x {columns}, {tokens} tokens, {threads} threads; memory is read at {max(memory):.1f} GB/s\n"
    )
    print("| | ms | bits per weight | GB/s | of memory |\n|---|---|---|---|---|")
    for contender in contenders:
        least = min(contender.times)
        rate = contender.bytes / least / 1e9
        bits = 8 * contender.bytes / rows / columns
        print(
            f"| {contender.name} | {1e3 * least:.3f} | {bits:.2f} | {rate:.1f} | {rate / max(memory):.0%} |"
        )
    print(flush=True)


def ours(rows: int, columns: int, tokens: int, instruction_set: str) -> list[Contender]:
    """Our kernels."""
    x = torch.randn(tokens, columns)
    found = []
    for name, (settings, share) in OURS.items():
        packed = PackedWeight.pack(random_weight(Scheme(**settings), rows, columns, share))
        copies = range(copies_of(packed.nbytes))
        weights = [PackedWeight(packed.layout, cloned(packed.parts)) for _ in copies]
        handles = [Handle(weight, instruction_set) for weight in weights]
        for mode in MODES:

            def run(handles: list[Handle] = handles, mode: Mode = mode) -> float:
                return timed([lambda h=h: h.multiply(x, mode) for h in handles])

            found.append(Contender(f"{name}, {mode}", packed.nbytes, run))
    return found


def torchs(rows: int, columns: int, tokens: int) -> list[Contender]:
    """torch's products with dense weights, and its operator for 4 bits."""
    found = []
    for name, dtype in (("torch float32", torch.float32), ("torch bfloat16", torch.bfloat16)):
        weights = [
            torch.randn(rows, columns).to(dtype) for _ in range(copies_of(rows * columns * dtype.itemsize))
        ]
        x = torch.randn(tokens, columns, dtype=dtype)

        def run(weights: list[torch.Tensor] = weights, x: torch.Tensor = x) -> float:
            return timed([lambda w=w: functional.linear(x, w) for w in weights])

        found.append(Contender(name, weights[0].nbytes, run))
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.randn(columns // 128, rows, 2, dtype=torch.bfloat16)
    size = packed.nbytes + scales.nbytes
    packs = [packed.clone() for _ in range(copies_of(size))]
    x = torch.randn(tokens, columns, dtype=torch.bfloat16)

    def multiply() -> float:
        return timed(
            [lambda p=p: torch.ops.aten._weight_int4pack_mm_for_cpu(x, p, 128, scales) for p in packs]
        )

    return [*found, Contender("torch int4 g128, bfloat16 activations", size, multiply)]


class Llama:
    """ggml's products, in a process of their own.

    Args:
        python: of an environment with llama-cpp-python.
    """

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("ggml_products.py")
        self._process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def contenders(self, rows: int, columns: int, tokens: int, threads: int) -> list[Contender]:
        """Its types."""
        found = []
        for kind in LLAMA:
            size = rows * columns * LLAMA_BITS[kind] / 8
            ask = {
                "type": kind,
                "rows": rows,
                "columns": columns,
                "copies": copies_of(size),
                "tokens": tokens,
                "sweep": SWEEP.nbytes,
            }

            def run(ask: dict[str, Any] = ask) -> float:
                return self._seconds({**ask, "threads": threads, "rounds": 3})

            found.append(Contender(f"llama.cpp {kind}", size, run))
        return found

    def _seconds(self, ask: dict[str, Any]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["seconds"])


def random_weight(scheme: Scheme, rows: int, columns: int, share: float) -> QuantizedWeight:
    """Random integers of a grid, with a share of outliers."""
    from roundel.grid.super_blocks import SuperBlocks

    def codes(bits: int, width: int) -> torch.Tensor:
        return torch.randint(0, 2**bits, (rows, width), dtype=torch.uint8)

    groups, block = scheme.groups(columns), scheme.block_type

    def super_blocks() -> SuperBlocks:
        assert block is not None
        found, steps = codes(block.scale_bits, groups), torch.rand(rows, groups // block.groups).half()
        if scheme.sym:  # codes are signed
            found = found.view(torch.int8) - 2 ** (block.scale_bits - 1)
        return SuperBlocks(found, steps, block.scale_bits)

    scale: Any = torch.rand(rows, groups).half()
    zero: Any = None if scheme.sym else codes(scheme.bits, groups)
    if scheme.two_level:
        tiles = (-(-rows // scheme.tile_rows), groups)
        assert scheme.scale_bits is not None
        assert scheme.zero_bits is not None
        scale, zero = (
            Tiles(
                codes(bits, groups),
                torch.rand(tiles).half(),
                torch.rand(tiles).half(),
                bits,
                scheme.tile_rows,
            )
            for bits in (scheme.scale_bits, scheme.zero_bits)
        )
    elif block is not None:
        scale, zero = super_blocks(), None if scheme.sym else super_blocks()
    outliers = None
    if share:
        outliers = Outliers.where(torch.rand(rows, columns) < share, torch.randn(rows, columns))
    return QuantizedWeight(codes(scheme.bits, columns), scale, zero, scheme, outliers)


def copies_of(size: float) -> int:
    """Of a matrix, one of them for warming up."""
    return max(2, -(-int(BYTES) // int(size))) + 1


def cloned(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In memory of their own."""
    return {name: part.clone() for name, part in parts.items()}


def timed(products: list[Callable[[], Any]]) -> float:
    """Seconds of one of them, the least of three goes through all of them, which begin in memory."""
    times = []
    for _ in range(3):
        SWEEP.sum()
        time.sleep(REST_SECONDS)
        products[0]()  # what has not been called for long is slow for other reasons
        start = time.perf_counter()
        for product in products[1:]:
            product()
        times.append((time.perf_counter() - start) / (len(products) - 1))
    return min(times)


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-python")
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", default="", help="instruction set of our kernels, not the best that is here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
