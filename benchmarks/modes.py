"""What fast mode costs: its divergence from exact mode beside the quantization's own.

    python benchmarks/modes.py FOLDER=SOURCE [FOLDER=SOURCE ...] --text wiki.test.raw [--limit 8] [--window 512]

KL is the mean divergence per token, in nats: of exact mode from the source (the quantization's own), of exact mode
from the decoded model (whose weights are rounded to the type that they are stored in), and of fast mode from exact.
Perplexities are on the same windows. All around the products is in float32: in 16 bits a sum that is another by its
last bit is rounded otherwise now and then, and two exact runs that differ so are as far apart as fast mode takes them.
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
        exact, tokenizer = opened(folder, packed=True)
        original, _ = opened(source, packed=False)
        how: dict[str, Any] = {
            "tokenizer": tokenizer,
            "text": arguments.text,
            "limit": arguments.limit,
            "window": arguments.window,
        }
        own, perplexity = measure(exact, original, how)
        del original
        decoded, _ = opened(folder, packed=False)
        rounding, _ = measure(exact, decoded, how)
        del decoded
        fast, _ = opened(folder, packed=True, mode="fast")
        cost, with_cost = measure(fast, exact, how)
        print(
            f"| {folder} | {own:.5f} | {rounding:.1e} | {cost:.6f} | {cost / own:.2%} | "
            f"{perplexity:.3f} | {with_cost:.3f} |",
            flush=True,
        )


def opened(folder: str, **how: Any) -> tuple[Any, Any]:
    """The model, in float32 where it is not packed, and its tokenizer."""
    model, tokenizer = roundel.load(folder, **how)
    return model.float(), tokenizer


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
