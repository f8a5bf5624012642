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
        own, perplexity = measure(exact, source, how)
        decoded, _ = roundel.load(folder, packed=False)
        rounding, _ = measure(exact, decoded, how)
        fast, _ = roundel.load(folder, packed=True, mode="fast")
        cost, with_cost = measure(fast, exact, how)
        print(
            f"| {folder} | {own:.5f} | {rounding:.1e} | {cost:.6f} | {cost / own:.2%} | "
            f"{perplexity:.3f} | {with_cost:.3f} |",
            flush=True,
        )


def measure(model: Any, reference: Any, how: dict[str, Any]) -> tuple[float, float]:
    """Mean KL from a reference, and perplexity."""
    text = roundel.evaluate(model, reference=reference, **how).texts[0]
    assert text.kl is not None
    return text.kl.mean.value, text.perplexity.value


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
