"""llama.cpp's quantizer, with and without an importance matrix, and files of ours beside it: bytes, bits, KL.

    python benchmarks/llama_cpp.py SmolLM2-135M=SOURCE.gguf --tools BUILD/bin --folder WORK --calibration c4.jsonl \\
        --text wiki.test.raw [--ours NAME=file.gguf ...]

`llama-quantize` makes a file of every type out of SOURCE, without and with what `llama-imatrix` finds on 100,000 tokens
of the calibration text; a quantized source with `--allow-requantize`. Every file is read by transformers into float32
and compared with SOURCE, read alike, on the windows of `roundel eval SOURCE --text TEXT --window 512 --limit 12`:
what is measured are the weights alone, not the 8-bit activations that llama.cpp computes with.

What is in WORK/table.json is not made again; files of other models and of ours are added to it (they are known by their
bytes). `--show` prints the table of what is there. A model whose alphabet is no text (benchmarks/microformer.py) is
measured, and its importance matrix collected, on what it writes itself: `--text self`, `--calibration self`.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

from gguf_files import JUDGED, GgufFile, Judge, digest_of, own_rows
from roundel.calibration.sources import parse_sources
from roundel.calibration.texts import read_documents
from roundel.evaluation.windows import EvaluationText, evaluation_windows
from roundel.model.source import open_tokenizer

TYPES = (
    *("Q2_K", "Q3_K_S", "Q3_K_M"),
    *("Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M"),
    *("Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0"),
)
SEED = 42
Row = dict[str, Any]


class Table:
    """The rows of a JSON file, written whenever one is added.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def find(self, **wanted: Any) -> Row | None:
        """The row with these values."""
        return next((r for r in self.rows if all(r.get(k) == value for k, value in wanted.items())), None)

    def add(self, row: Row) -> None:
        """A row; one of the same model and name is replaced."""
        same = self.find(model=row["model"], name=row["name"])
        self.rows = [other for other in self.rows if other is not same] + [row]
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)


class Bench:
    """One model's files.

    Args:
        arguments: of the command line.
        table: where the rows go.
    """

    def __init__(self, arguments: Namespace, table: Table) -> None:
        self.arguments, self.table = arguments, table
        self.name, self.source = named(arguments.model)
        self.folder = arguments.folder / self.name
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def file(self) -> GgufFile:
        """The source."""
        return GgufFile(self.source)

    @cached_property
    def model(self) -> Any:
        """The source's model; other files' weights take the place of its own."""
        return self.file.open()

    @property
    def original(self) -> Any:
        """The same with the source's weights."""
        self.file.fill(self.model)
        return self.model

    @cached_property
    def judge(self) -> Judge:
        """The source's predictions."""
        return Judge(self.original, self._text())

    def quantized(self, kind: str, imatrix: bool) -> None:
        """A file by llama-quantize, and its row."""
        name = kind + (" imatrix" if imatrix else "")
        if self.table.find(model=self.name, name=name):
            return
        path = self.folder / f"{kind}{'.imatrix' if imatrix else ''}.gguf"
        if not path.is_file():
            part = path.with_suffix(".part")
            options = ["--allow-requantize", *(["--imatrix", str(self._imatrix())] if imatrix else [])]
            self._tool("quantize", *options, str(self.source), str(part), kind, str(self.arguments.threads))
            part.replace(path)
        self._add({"name": name, "by": "llama.cpp", "kind": kind, "imatrix": imatrix}, path)
        if not self.arguments.keep:
            path.unlink()

    def ours(self, given: str) -> None:
        """The row of a file that somebody else wrote."""
        name, path = named(given)
        if not self.table.find(model=self.name, name=name, sha256=digest_of(path)):
            self._add({"name": name, "by": "ours"}, path)

    def _add(self, row: Row, path: Path) -> None:
        file = GgufFile(path)
        figures = {**file.figures(self.file), "tensors": file.digest, "sha256": digest_of(path)}
        same = self.table.find(model=self.name, tensors=file.digest)
        if same is None:
            judge = self.judge
            file.fill(self.model)
            judged = judge.figures(self.model)
        else:
            judged = {key: same[key] for key in JUDGED}
        self.table.add({"model": self.name, **row, **judged, **figures})
        words = f"{self.name} {row['name']}: {figures['bytes']:,} bytes, KL {judged['kl']:.4f}"
        print(words, file=sys.stderr, flush=True)

    def _text(self) -> EvaluationText:
        arguments = self.arguments
        if arguments.text == "self":
            rows = own_rows(self.original, self.file, arguments.limit, arguments.window, SEED + 1)
            words = (
                f"{len(rows)} windows of {arguments.window} tokens that the original writes, seed {SEED + 1}"
            )
            return EvaluationText("self", rows, words)
        tokenizer = open_tokenizer(self.source.parent, gguf_file=self.source.name)
        return evaluation_windows(arguments.text, tokenizer, arguments.window, arguments.limit)

    def _imatrix(self) -> Path:
        path = self.folder / "imatrix.gguf"
        if not path.is_file():
            arguments, part = self.arguments, self.folder / "imatrix.part.gguf"
            chunks = arguments.imatrix_tokens // arguments.window
            text = self.folder / "calibration.txt"
            text.write_text(self._calibration(chunks), encoding="utf-8")
            size = ["-c", str(arguments.window), "-b", str(arguments.window), "--chunks", str(chunks)]
            options = ["-t", str(arguments.threads), "--no-ppl", "-o", str(part)]
            if arguments.calibration == "self":
                options.append("--parse-special")
            self._tool("imatrix", "-m", str(self.source), "-f", str(text), *size, *options)
            part.replace(path)
        return path

    def _calibration(self, chunks: int) -> str:
        """The text as llama.cpp's own tokenizer is given it."""
        if self.arguments.calibration != "self":
            found = read_documents(parse_sources(self.arguments.calibration)[0])
            return " ".join(str(document) for document in found.documents)
        rows = own_rows(self.original, self.file, chunks, self.arguments.window, SEED)
        tokens = self.file.value("tokenizer.ggml.tokens")
        return " ".join(tokens[int(token)] for token in rows.flatten())

    def _tool(self, name: str, *options: str) -> None:
        with (self.folder / "tools.log").open("ab") as log:
            done = subprocess.run(
                [str(self.arguments.tools / f"llama-{name}"), *options], stdout=log, stderr=log, check=False
            )
        if done.returncode:
            sys.exit(f"llama-{name} ended with {done.returncode}: see {log.name}")


def named(given: str) -> tuple[str, Path]:
    """NAME=FILE."""
    name, _, file = given.partition("=")
    if not file or not Path(file).is_file():
        sys.exit(f"{given}: NAME=FILE.gguf with a file that exists is expected")
    return name, Path(file)


def main() -> None:
    """Measure what is missing, print all."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="NAME=SOURCE.gguf")
    parser.add_argument("--folder", type=Path, required=True, help="for files and table.json")
    parser.add_argument("--tools", type=Path, help="folder of llama-quantize and llama-imatrix")
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--ours", nargs="+", action="extend", default=[], metavar="NAME=FILE")
    parser.add_argument("--text", help="a file, or `self`: what the original writes")
    parser.add_argument("--calibration", help="for the importance matrix: a file, or `self`")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--imatrix-tokens", type=int, default=100_352)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the quantized files")
    parser.add_argument("--show", action="store_true", help="print only")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    table = Table(arguments.folder / "table.json")
    if not arguments.show:
        if not arguments.model or not arguments.text:
            parser.error("a model and --text are expected, or --show")
        bench = Bench(arguments, table)
        for given in arguments.ours:
            bench.ours(given)
        if arguments.tools:
            for imatrix in (False, True)[: 2 if arguments.calibration else 1]:
                for kind in arguments.types:
                    bench.quantized(kind, imatrix)
    print_tables(table.rows)


def print_tables(rows: list[Row]) -> None:
    """A Markdown table for each model, smallest file first."""
    for model in dict.fromkeys(row["model"] for row in rows):
        found = sorted((row for row in rows if row["model"] == model), key=lambda row: row["bytes"])
        first = found[0]
        print(
            f"\n### {model}\n\n{first['convention']}; the original's perplexity {first['reference_perplexity']:.2f}.\n"
        )
        print(
            "| file | bytes | bits per parameter | in blocks | KL | 95 % | top-1 | types in blocks; embedding, head |"
        )
        print("|---" * 8 + "|")
        for row in found:
            inside = ", ".join(f"{kind} {share:.0%}" for kind, share in row["types_in_blocks"].items())
            beside = ", ".join(row["types_beside"].values())
            marks = "" if row["copied"] < 0.005 else f" ({row['copied']:.0%} copied)"
            who = f"**{row['name']}**" if row["by"] == "ours" else row["name"]
            print(
                f"| {who} | {row['bytes']:,} | {row['bits_per_parameter']:.2f} | {row['bits_in_blocks']:.2f} | "
                f"{digits(row['kl'])} | {digits(row['kl_low'])} - {digits(row['kl_high'])} | {row['top1']:.1%} | "
                f"{inside}{marks}; {beside} |"
            )  # fmt: skip


def digits(value: float) -> str:
    """Three that count."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:.3g}"


if __name__ == "__main__":
    main()
