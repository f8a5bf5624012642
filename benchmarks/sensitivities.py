"""How much of an error in one kind of matrix comes out at the end of a model: the constants of recipe/even.py.

    python benchmarks/sensitivities.py MODEL --text c4.part.jsonl [--bos]     # s, by roles
    python benchmarks/sensitivities.py MODEL --errors                         # e, by types

All matrices of one role, and nothing else, are rounded to the nearest on searched q4_0 grids. Printed: the KL to the
original on 4 windows of 400 tokens at the end of the text, the mean relative squared error of the weights, and the KL
over the sum of these errors, also in units of the queries'.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

import torch

import roundel
from roundel.calibration.sources import parse_sources
from roundel.calibration.texts import read_documents
from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.scheme import Scheme
from roundel.methods.rtn import make_start
from roundel.model.blocks import find_blocks
from roundel.model.linears import LinearView
from roundel.model.roles import role_of
from roundel.model.text_path import text_model

WINDOWS, WINDOW = 4, 400


def main() -> None:
    """Print a table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--text", help="a file of documents")
    parser.add_argument("--bos", action="store_true", help="windows begin with the token of beginnings")
    parser.add_argument("--errors", action="store_true", help="relative errors of all types")
    arguments = parser.parse_args()
    model, tokenizer = roundel.load(arguments.model)
    if arguments.errors:
        print_errors(matrices(model))
    else:
        print_sensitivities(model, windows(tokenizer, arguments))


def matrices(model: Any) -> dict[str, list[LinearView]]:
    """By their roles."""
    stack, found = find_blocks(model), dict[str, list[LinearView]]()
    for index in range(len(stack)):
        for view in stack.linears(index):
            found.setdefault(role_of(view.name), []).append(view)
    found["embedding"] = [LinearView("embedding", text_model(model).get_input_embeddings())]
    return found


def windows(tokenizer: Any, arguments: Namespace) -> torch.Tensor:
    """`[4, 400]`, from the last documents."""
    documents = read_documents(parse_sources(arguments.text)[0]).documents
    ids = tokenizer("\n\n".join(map(str, documents[-300:])), add_special_tokens=False)["input_ids"]
    own = WINDOW - arguments.bos
    rows = [ids[number * own : (number + 1) * own] for number in range(WINDOWS)]
    return torch.tensor([[tokenizer.bos_token_id] * arguments.bos + row for row in rows])


def print_sensitivities(model: Any, rows: torch.Tensor) -> None:
    """A row for each role."""
    reference = log_probabilities(model, rows)
    print("| role | matrices | KL | relative error | KL / error | over that of queries |")
    print("|---" * 6 + "|")
    unit = 0.0
    for role, views in sorted(matrices(model).items(), key=lambda item: item[0] != "query"):
        before, error = [view.weight.clone() for view in views], 0.0
        for view in views:
            error += round_to(view, "q4_0")
        found = divergence(reference, log_probabilities(model, rows))
        for view, weight in zip(views, before, strict=True):
            view.write(weight)
        unit = unit or found / error
        mean = error / len(views)
        print(
            f"| {role} | {len(views)} | {found:.4f} | {mean:.5f} | {found / error:.3f} | {found / error / unit:.1f} |"
        )


@torch.no_grad()
def log_probabilities(model: Any, rows: torch.Tensor) -> list[torch.Tensor]:
    """Of each window, `[S, V]`."""
    return [model(row[None]).logits[0].float().log_softmax(-1) for row in rows]


def divergence(reference: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """KL in nats per token."""
    pairs = zip(reference, found, strict=True)
    return sum(float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs) / len(reference)


@torch.no_grad()
def round_to(view: LinearView, kind: str) -> float:
    """Round a matrix in place; its relative squared error."""
    weight, scheme = view.weight.float().clone(), Scheme(type=kind)
    rounded = make_start(weight, scheme, "search", None).quantize(weight, scheme).dequantize()
    view.write(rounded)
    return float((rounded - weight).square().sum() / weight.square().sum())


def print_errors(found: dict[str, list[LinearView]]) -> None:
    """Means over the blocks' matrices whose rows are whole blocks of the type."""
    views = [view for role, views in found.items() if role != "embedding" for view in views]
    print("| type | bits per weight | relative error |\n|---|---|---|")
    for kind, block in sorted(BLOCK_TYPES.items(), key=lambda item: item[1].bits_per_weight):
        errors = []
        for view in views:
            if view.shape[1] % block.block == 0:
                before = view.weight.clone()
                errors.append(round_to(view, kind))
                view.write(before)
        if errors:
            print(f"| {kind} | {block.bits_per_weight:.4g} | {sum(errors) / len(errors):.6f} |")


if __name__ == "__main__":
    with torch.no_grad():
        main()
