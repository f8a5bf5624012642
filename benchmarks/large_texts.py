"""What reading text takes: seconds, and memory beside the process, for plain text and JSON lines of 12 and 200 MB.

    python benchmarks/large_texts.py MODEL TEXT

Files are made of TEXT, over and over with a number in front, in a temporary folder. Of each 16 samples of 128 tokens
are read for calibration, and 16 windows of 128 tokens to measure on, by MODEL's tokenizer, in a process of its own; of
the 12 MB of text 20,000 samples are, too, and all of it is given to the tokenizer in one call, to compare with. Memory
is the growth of the process's largest size.
"""

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

_SIZES = (12, 200)
_MB = 10**6
_MORE = ("many samples", "one call")


def main() -> None:
    """Parse the arguments, make files, measure each; or measure one."""
    command = ArgumentParser(description=__doc__)
    command.add_argument("model", help="folder whose tokenizer reads")
    command.add_argument("text", help="plain text, a megabyte or more")
    command.add_argument("--measure", choices=("samples", "windows", *_MORE), help="read TEXT here")
    arguments = command.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.model, arguments.text)))
        return
    text = Path(arguments.text).read_text(encoding="utf-8")[:_MB]
    with TemporaryDirectory() as folder:
        for size in _SIZES:
            for path in make(Path(folder), text, size * _MB):
                more = _MORE if size == _SIZES[0] and path.suffix == ".txt" else ()
                for what in ("samples", "windows", *more):
                    told = in_a_process(what, arguments.model, path)
                    print(f"{path.name:12} {what:12} {told[0]:6.2f} s  {told[1]:5.0f} MB of {told[2]:.0f} MB")


def make(folder: Path, text: str, size: int) -> list[Path]:
    """A text and JSON lines of about so many bytes."""
    plain, rows = folder / f"{size // _MB}.txt", folder / f"{size // _MB}.jsonl"
    count = size // len(text.encode())
    with plain.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(f"Part {number}.\n\n{text}\n\n")
    pieces = [text[start : start + 1200] for start in range(0, len(text), 1200)]
    with rows.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.writelines(json.dumps({"text": f"Part {number}. {piece}"}) + "\n" for piece in pieces)
    return [plain, rows]


def in_a_process(what: str, model: str, path: Path) -> list[float]:
    """Seconds, megabytes beside the process, megabytes of the process."""
    line = [sys.executable, __file__, model, str(path), "--measure", what]
    found = subprocess.run(line, check=True, capture_output=True, text=True)
    told: list[float] = json.loads(found.stdout)
    return told


def measure(what: str, model: str, path: str) -> list[float]:
    """The same, here."""
    from transformers import AutoTokenizer

    from roundel.calibration.options import CalibrationOptions
    from roundel.calibration.portion import Need
    from roundel.calibration.sources import Source
    from roundel.calibration.texts import read_documents
    from roundel.calibration.tokens import pack_documents
    from roundel.evaluation.windows import evaluation_windows

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer("warm")
    before, began = _largest(), time.perf_counter()
    if what == "windows":
        evaluation_windows(path, tokenizer, 128, 16)
    elif what == "one call":
        tokenizer(Path(path).read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)
    else:
        options = CalibrationOptions(nsamples=16 if what == "samples" else 20_000, seqlen=128)
        need = Need(tokens=options.nsamples * options.seqlen, row=options.seqlen, seed=options.seed)
        pack_documents(read_documents(Source(path), None, need).documents, tokenizer, options)
    return [time.perf_counter() - began, _largest() - before, _largest()]


def _largest() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
