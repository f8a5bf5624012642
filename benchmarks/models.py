"""Architecture x method x format on the small trained models of the tests: the tables of docs/models.md.

    python benchmarks/models.py > docs/models.md
    python benchmarks/models.py mixtral gpt_oss

Every cell is a run: the model is quantized and written, opened again as a user opens it (through transformers where the
format is one that it reads), and its logits on held-out text are compared with those of the tuned model in memory. One
thread, minutes in all; the models are trained at the first use.
"""

import os
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from zoo import EVERY, OWN_CODE, manual_text, zoo_model

METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "GPTQ": {"method": "gptq"},
    "SpQR": {"method": "spqr", "outliers": 0.005},
    "AutoRound": {"method": "autoround", "iters": 40},
    "LRQ": {"method": "lrq", "iters": 40},
}
FORMATS = ("dense", "compressed-tensors", "roundel")
# 3 bits tell methods apart on models that are so small.
GRID = {"bits": 3, "group_size": 32}
SPQR_GRID = {"bits": 3}
DATA = {"nsamples": 32, "seqlen": 64, "batch_size": 8}
WINDOWS, WINDOW = 16, 64

HEAD = f"""# Architectures

Written by `python benchmarks/models.py > docs/models.md`; nothing here is typed by hand. The models are those of the
tests (`tests/zoo`): one for each architecture, trained for seconds on Python's reference manual, which is enough for
weights that tell methods apart and for a text that a broken model cannot predict. torch {torch.__version__}.

Settings: {GRID["bits"]} bits, groups of {GRID["group_size"]}; SpQR on its own grid (groups of 16, statistics of 4 bits)
with 0.5 % outliers. {DATA["nsamples"]} x {DATA["seqlen"]} tokens of calibration text, 40 iterations where a method
tunes, seed 42. KL: mean divergence per token from the original, in nats, on {WINDOWS} x {WINDOW} tokens that no model
was trained on. "random" is the same for a model of the same architecture with fresh weights: what KL would be, were
the model broken.

A format's cell says whether the written folder, opened again (`dense` and `compressed-tensors` by transformers alone),
has the logits of the tuned model in memory: `=` for each of them bit for bit, else the largest difference. Where a
format cannot carry the result, a letter says why; `roundel quantize` says so before it begins. compressed-tensors is
written with symmetric grids.
"""


@dataclass
class Reasons:
    """Footnotes: why a format cannot carry something."""

    known: list[str]

    def mark(self, error: roundel.RoundelError) -> str:
        """A letter for a reason."""
        words = str(error).partition(" ")[2]
        if words not in self.known:
            self.known.append(words)
        return f"({'abcdefghijklmnopqrstuvwxyz'[self.known.index(words)]})"


def main() -> None:
    """Print the page."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of the zoo; all of them, if none is given")
    names = parser.parse_args().names or list(EVERY)
    torch.set_num_threads(1)
    reasons = Reasons([])
    print(HEAD)
    print("| architecture | Linears | random | method | KL | " + " | ".join(FORMATS) + " |")
    print("|---|---|---|---|---|" + "---|" * len(FORMATS))
    for name in names:
        for row in rows(name, reasons):
            print(row, flush=True)
    print("\nA format that does not carry a result:\n")
    for letter, words in zip("abcdefghijklmnopqrstuvwxyz", reasons.known, strict=False):
        print(f"* ({letter}) a layer {words}")


def rows(name: str, reasons: Reasons) -> list[str]:
    """One for each method."""
    folder = zoo_model(name)
    windows = held_out(folder, name in OWN_CODE)
    original = opened(folder, name in OWN_CODE)
    wanted = logits(original, windows)
    fresh = AutoModelForCausalLM.from_config(original.config, trust_remote_code=name in OWN_CODE).eval()
    random = divergence(wanted, logits(fresh, windows))
    found = []
    for method, settings in METHODS.items():
        grid = SPQR_GRID if method == "SpQR" else GRID
        data = {} if method == "RTN" else DATA
        cells, kl, count = [], "", 0
        for kind in FORMATS:
            sym = {"sym": True} if kind == "compressed-tensors" and method != "SpQR" else {}
            recipe = roundel.Recipe(**settings, **grid, **data, **sym, format=kind)
            print(name, method, kind, file=sys.stderr, flush=True)
            try:
                done, equal = run(folder, recipe, windows, name in OWN_CODE)
            except roundel.RoundelError as error:
                cells.append(reasons.mark(error))
                continue
            cells.append(equal)
            if kind == "dense":
                kl = f"{divergence(wanted, logits(done.model, windows)):.4f}"
                count = sum(layer["bits"] is not None for layer in done.manifest["layers"])
        first = [name, str(count), f"{random:.2f}"] if method == "RTN" else ["", "", ""]
        found.append(f"| {' | '.join([*first, method, kl, *cells])} |")
    return found


def run(
    folder: Path, recipe: roundel.Recipe, windows: torch.Tensor, own_code: bool
) -> tuple[roundel.Quantized, str]:
    """Quantize and write, open again, compare."""
    calibration = "pydoc" if recipe.needs_calibration else None
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "written"
        done = roundel.quantize(
            folder, recipe, calibration=calibration, output=out, trust_remote_code=own_code
        )
        reload: Callable[[], Any] = lambda: opened(out, own_code)  # noqa: E731
        if recipe.format == "roundel":
            reload = lambda: roundel.load(out, trust_remote_code=own_code)[0]  # noqa: E731
        difference = (logits(reload(), windows) - logits(done.model, windows)).abs().max()
    return done, "=" if difference == 0 else f"{float(difference):.1e}"


def opened(folder: Path, own_code: bool) -> Any:
    """A model as transformers alone opens it."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own_code).eval()


def held_out(folder: Path, own_code: bool) -> torch.Tensor:
    """Token ids `[windows, length]`."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=own_code)
    ids = torch.tensor(tokenizer(manual_text(), verbose=False)["input_ids"])
    return ids[: WINDOWS * WINDOW].view(WINDOWS, WINDOW)


@torch.no_grad()
def logits(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """`[windows, length, vocabulary]`."""
    return model(input_ids=windows).logits.float()


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Mean KL per token, in nats."""
    return float(
        functional.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none")
        .sum(-1)
        .mean()
    )


if __name__ == "__main__":
    main()
