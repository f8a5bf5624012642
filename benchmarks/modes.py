"""What fast mode costs: its divergence from exact mode beside the quantization's own.

    python benchmarks/modes.py FOLDER=SOURCE [FOLDER=SOURCE ...] --text wiki.test.raw [--limit 8] [--window 512]

KL is the mean divergence per token, in nats: of exact mode from the source (the quantization's own), of exact mode
from the decoded model (rounding), and of fast mode from exact. Perplexities are on the same windows.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

import roundel


def main() -> None:
    """Print a row for each folder."""
    arguments = parse()
    print(
        "| | KL exact to source | exact to decoded | fast to exact | of its own | perplexity exact | fast |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for pair in arguments.pairs:
        folder, _, source = pair.partition("=")
        exact, tokenizer = roundel.load(folder, packed=True)
        how: dict[str, Any] = {
            "tokenizer": tokenizer,
            "text": arguments.text,
            "limit": arguments.limit,
            "window": arguments.window,
        }
        own = roundel.evaluate(exact, reference=source, **how)
        decoded, _ = roundel.load(folder, packed=False)
        rounding = roundel.evaluate(exact, reference=decoded, **how)
        fast, _ = roundel.load(folder, packed=True, mode="fast")
        cost = roundel.evaluate(fast, reference=exact, **how)
        assert own.kl is not None
        assert rounding.kl is not None
        assert cost.kl is not None
        print(
            f"| {folder} | {own.kl:.5f} | {rounding.kl:.1e} | {cost.kl:.6f} | {cost.kl / own.kl:.2%} | "
            f"{own.perplexity:.3f} | {cost.perplexity:.3f} |",
            flush=True,
        )


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pairs", nargs="+", metavar="FOLDER=SOURCE")
    parser.add_argument("--text", required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--window", type=int, default=512)
    return parser.parse_args()


if __name__ == "__main__":
    main()
