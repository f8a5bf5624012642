"""llama.cpp's speed on GGUF files, as `roundel bench` measures ours: new tokens and prompts per second.

    PYTHON -P benchmarks/llama_speed.py FILE.gguf ... [--threads 1] [--prompt 512] [--context 128] [--new 64]

PYTHON is that of an environment with the package llama-cpp-python, which needs nothing of Roundel; -P, as a file here
has its name. Medians and extremes of `--rounds`; tokens are the same every time, the end of a text ends nothing. Peak
memory is that of the process, so give one file at a time where it counts.
"""

import resource
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

from llama_cpp import Llama


def main() -> None:
    """Print a row for each file."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", nargs="+")
    for name, value in (("threads", 1), ("prompt", 512), ("context", 128), ("new", 64), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    print("| file | new tokens per second | prompt tokens per second | peak memory |\n|---|---|---|---|")
    for file in arguments.files:
        model = Llama(
            file,
            n_ctx=arguments.prompt + arguments.new + arguments.context,
            n_batch=512,
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            verbose=False,
        )
        ids = [1000 + (7919 * i) % 20000 for i in range(arguments.prompt)]
        prefill, decode = [], []
        for number in range(arguments.rounds + 1):
            seconds = timed(model, ids)
            model.reset()
            model.eval(ids[: arguments.context])
            start = time.perf_counter()
            for token in ids[: arguments.new]:
                model.eval([token])
            if number:
                prefill.append(arguments.prompt / seconds)
                decode.append(arguments.new / (time.perf_counter() - start))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"| {Path(file).name} | {words(decode, '.1f')} | {words(prefill, '.0f')} | {peak:.0f} MiB |",
            flush=True,
        )


def timed(model: Llama, ids: list[int]) -> float:
    """Seconds in which a prompt is read."""
    model.reset()
    start = time.perf_counter()
    model.eval(ids)
    return time.perf_counter() - start


def words(values: list[float], form: str) -> str:
    """Median and extremes."""
    return f"{median(values):{form}} ({min(values):{form}} .. {max(values):{form}})"


if __name__ == "__main__":
    main()
