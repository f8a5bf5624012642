"""Every export of a model in the real clients that run on a CPU: what opens, what it says, and how exact it is.

    python benchmarks/clients.py SmolLM2-135M.gguf --folder CLIENTS --text wiki.test.raw

The model is rounded to nearest into every format that is registered (into one that EXPORTS does not name, by one
recipe), and each client opens the result in an environment of its own: CLIENTS/vllm, CLIENTS/gptqmodel (transformers
with what reads GPTQ and AWQ), CLIENTS/genai, CLIENTS/llama, made if they are not there. In each: 20 greedy tokens, and
the loss of 255 predictions of the text, each against what Roundel computes of the same folder in float32. llama.cpp,
which computes with 8-bit activations, is asked for perplexities, twice: of our file, and of its own float32 copy of it,
which has to be ours.

CLIENTS/clients.json keeps every row; what is in it is not run again (--again CLIENT does). Prints the table.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import roundel
from client_environments import NotInstalled, python_of, tools_of_llama_cpp
from roundel.formats import CONTAINERS

PROMPT = "The capital of France is Paris. The capital of Germany is"
NEW, WINDOW, CHUNKS = 20, 256, 4
SYMMETRIC = {"bits": 4, "sym": True}
# Formats, and what of a recipe makes a difference to clients.
EXPORTS: dict[str, tuple[dict[str, Any], ...]] = {
    "compressed-tensors": (
        SYMMETRIC,
        {"bits": 4},
        {"bits": 8, "sym": True},
        {"bits": 8, "sym": True, "group_size": -1, "act_bits": 8},
        {"bits": 3, "sym": True},
        {"bits": 2, "sym": True},
    ),
    "gptq": (
        SYMMETRIC,
        {"bits": 4},
        {"bits": 8, "sym": True},
        {"bits": 3, "sym": True, "group_size": 32},
        {"bits": 2, "sym": True},
    ),
    "gptq_v2": (SYMMETRIC, {"bits": 4}),
    "awq": ({"bits": 4}, SYMMETRIC),
    "auto-round": (SYMMETRIC, {"bits": 4}),
    "gguf": (
        *({"type": kind} for kind in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")),
        *({"mixture": kind} for kind in ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k")),
    ),
    "dense": ({"bits": 4},),
}
# What nobody but Roundel opens.
OWN = ("roundel", "spqr")
# Environment, whether it reads folders and GGUF files, type, and how far its predictions may be from ours: the mean
# absolute difference of their losses, in nats; of llama.cpp, which tells no more, the relative one of the perplexity.
CLIENTS: dict[str, tuple[str, bool, bool, str, float]] = {
    "transformers": ("gptqmodel", True, False, "float32", 1e-3),  # GGUF: Roundel itself reads with it
    "vllm": ("vllm", True, False, "float16", 2e-2),
    "genai": ("genai", True, False, "float32", 1e-2),
    "llama.cpp": ("llama", False, True, "float32", 2e-3),
}
# Relative, of the perplexity of a file that has its inputs quantized.
ROUNDED_INPUTS = 1e-2
Row = dict[str, Any]


class Bench:
    """The exports, and what is known of them.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: Namespace) -> None:
        self.arguments = arguments
        self.folder: Path = arguments.folder
        self.scratch = self.folder / "clients"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "clients.json"
        self.rows: list[Row] = (
            json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else []
        )
        self.rows = [row for row in self.rows if row["client"] not in arguments.again]

    @cached_property
    def exports(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Format and settings by name, of the formats that there are."""
        found = {}
        for kind in CONTAINERS:
            for settings in () if kind in OWN else EXPORTS.get(kind, ({"bits": 4},)):
                found[_name(kind, settings)] = (kind, settings)
        return found

    def made(self, name: str) -> Path:
        """The folder of an export, with Roundel's own answers in it."""
        folder, answers = self.scratch / name, self.scratch / f"{name}.json"
        if not answers.is_file():
            kind, settings = self.exports[name]
            grid = {} if kind == "gguf" else {"group_size": 64}
            recipe = roundel.Recipe.create(method="rtn", start="minmax", format=kind, **{**grid, **settings})
            if not folder.is_dir():
                roundel.quantize(self.arguments.model, recipe, output=folder, held_out=None)
            answers.write_text(json.dumps(self._answers(folder)), encoding="utf-8")
        return folder

    def _answers(self, folder: Path) -> Row:
        file = next(folder.glob("*.gguf"), None)
        model, tokenizer = roundel.load(file or folder)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        text = Path(self.arguments.text).read_text(encoding="utf-8")[: 16 * CHUNKS * WINDOW].lstrip()
        prompt = tokenizer(PROMPT, return_tensors="pt")
        with torch.no_grad():
            options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
            made = model.generate(**prompt, **options)[0, prompt["input_ids"].shape[1] :]
            ids = torch.tensor(tokenizer(text)["input_ids"][: CHUNKS * WINDOW]).view(CHUNKS, WINDOW)
            logits = torch.cat([model(input_ids=row[None]).logits for row in ids])
        loss = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return {
            "task": {"prompt": prompt["input_ids"][0].tolist(), "text": ids[0].tolist(), "new": NEW},
            "tokens": made.tolist(),
            "loss": loss[0].tolist(),
            "words": tokenizer.decode(made),
            "perplexity": float(loss[0].mean().exp()),
            # llama-perplexity counts the second half of every chunk.
            "second_halves": float(loss[:, WINDOW // 2 :].mean().exp()),
            "plain": text,
        }

    def run(self, client: str, name: str) -> None:
        """One export in one client, if it is not known yet."""
        if any(row["client"] == client and row["export"] == name for row in self.rows):
            return
        began = time.perf_counter()
        row: Row = {"client": client, "export": name, "format": self.exports[name][0]}
        try:
            folder = self.made(name)
            answers = json.loads((self.scratch / f"{name}.json").read_text(encoding="utf-8"))
            row |= (
                self._llama(folder, answers)
                if client == "llama.cpp"
                else self._inside(client, folder, answers)
            )
        except NotInstalled as error:
            row["error"] = f"could not be installed: {error}"
        except roundel.RoundelError as error:
            row["error"] = f"not written: {error}"
        row["seconds"] = round(time.perf_counter() - began, 1)
        self.rows.append(row)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)
        print(client, name, _short(row), file=sys.stderr, flush=True)

    def _inside(self, client: str, folder: Path, answers: Row) -> Row:
        environment, _, _, dtype, allowed = CLIENTS[client]
        python = python_of(environment, self.folder)
        work = self.scratch / f"{client}-{folder.name}"
        work.mkdir(exist_ok=True)
        task = {**answers["task"], "dtype": dtype, "scratch": str(work)}
        (work / "task.json").write_text(json.dumps(task), encoding="utf-8")
        (work / "out.json").unlink(missing_ok=True)
        inside = [str(Path(__file__).with_name("in_client.py")), client, str(folder)]
        with (work / "log").open("wb") as log:
            try:
                done = subprocess.run(
                    [str(python), *inside, str(work / "task.json"), str(work / "out.json")],
                    stdout=log, stderr=log, timeout=self.arguments.timeout, check=False, env=_environment(),
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return {"error": f"nothing after {self.arguments.timeout} s"}
        if not (work / "out.json").is_file():
            return {"error": f"ended with {done.returncode}: {_last_line(work / 'log')}"}
        found = json.loads((work / "out.json").read_text(encoding="utf-8"))
        row: Row = {"versions": found["versions"], "dtype": dtype}
        if "error" in found:
            return row | {"error": found["error"]}
        perplexity = math.exp(sum(found["loss"]) / len(found["loss"]))
        same = next(
            (i for i, (a, b) in enumerate(zip(found["tokens"], answers["tokens"], strict=False)) if a != b),
            NEW,
        )
        pairs = list(zip(found["loss"], answers["loss"], strict=True))
        apart = sum(abs(theirs - ours) for theirs, ours in pairs) / len(pairs)
        row |= {"perplexity": perplexity, "ours": answers["perplexity"], "same_tokens": same}
        row |= {"difference": apart, "allowed": allowed, "within": apart <= allowed}
        if "act_bits" in self.exports[folder.name][1]:
            # One input in 8 bits that rounds the other way changes all that follow: as a whole they may not be worse.
            row |= {"allowed": ROUNDED_INPUTS, "within": abs(perplexity / row["ours"] - 1) <= ROUNDED_INPUTS}
        return row

    def _llama(self, folder: Path, answers: Row) -> Row:
        tools = tools_of_llama_cpp(self.folder)
        work = self.scratch / f"llama-{folder.name}"
        work.mkdir(exist_ok=True)
        (text := work / "text.txt").write_text(answers["plain"], encoding="utf-8")
        file, exact = next(folder.glob("*.gguf")), work / "f32.gguf"
        row: Row = {"dtype": "float32", "versions": {"llama.cpp": _tool(tools, "completion", "--version")[1]}}
        options = [
            "-p",
            PROMPT,
            "-n",
            str(NEW),
            "--temp",
            "0",
            "-no-cnv",
            "--no-display-prompt",
            "-t",
            "1",
            "--ignore-eos",
        ]
        code, said = _tool(tools, "completion", "-m", str(file), *options, errors=False)
        if code:
            return row | {"error": _tool(tools, "completion", "-m", str(file), *options)[1]}
        words = said.strip()
        found = {}
        _tool(tools, "quantize", "--allow-requantize", str(file), str(exact), "F32")
        for which, path in (("quantized", file), ("exact", exact)):
            size = ["-c", str(WINDOW), "-b", str(WINDOW), "--chunks", str(CHUNKS), "-t", "1"]
            said = _tool(tools, "perplexity", "-m", str(path), "-f", str(text), *size)[1]
            estimate = re.search(r"Final estimate: PPL = ([\d.]+)", said)
            if estimate is None:
                return row | {"error": said.splitlines()[-1]}
            found[which] = float(estimate[1])
        exact.unlink()
        row |= _judged(found["exact"], answers["second_halves"], CLIENTS["llama.cpp"][-1])
        whole = answers["words"].strip()
        same = next((i for i, (a, b) in enumerate(zip(words, whole, strict=False)) if a != b), len(whole))
        return row | {
            "words": words,
            "same_text": words == whole,
            "same_characters": f"{same} of {len(whole)} characters",
            "with_8_bit_activations": found["quantized"] / found["exact"] - 1,
        }


def main() -> None:
    """Run what is missing, print the table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file, so that there is one to begin from for llama.cpp")
    parser.add_argument(
        "--folder", type=Path, required=True, help="for environments, exports and clients.json"
    )
    parser.add_argument("--text", help="a text file")
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--exports", nargs="+", help="by name or the beginning of a name")
    parser.add_argument("--again", nargs="+", choices=CLIENTS, default=[])
    parser.add_argument("--timeout", type=int, default=600)
    parser.add_argument("--show", action="store_true", help="print only")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    if not arguments.show:
        for client in arguments.only:
            _, folders, files, _, _ = CLIENTS[client]
            for name, (kind, _) in bench.exports.items():
                wanted = not arguments.exports or name.startswith(tuple(arguments.exports))
                if wanted and (files if kind == "gguf" else folders):
                    bench.run(client, name)
    print_table(bench.rows)


def print_table(rows: list[Row]) -> None:
    """Markdown."""
    for client in dict.fromkeys(row["client"] for row in rows):
        found = [row for row in rows if row["client"] == client]
        versions = next((row["versions"] for row in found if row.get("versions")), {})
        print(f"\n### {client}\n\n{', '.join(f'{k} {v}' for k, v in versions.items())}\n")
        print("| export | | of 20 greedy tokens the same | difference from ours |\n|---|---|---|---|")
        for row in found:
            if "error" in row:
                print(f"| {row['export']} | refused | | {_line(row['error'])} |")
                continue
            opened = "opens" if row["within"] else "**opens, but differs**"
            if "ratio" in row:
                same = "all" if row["same_text"] else row["same_characters"]
                cost = f"{row['with_8_bit_activations']:+.2%}"
                exact = f"perplexity {row['ratio'] - 1:+.3%}; its 8-bit activations {cost}"
            else:
                same = "all" if row["same_tokens"] == NEW else f"the first {row['same_tokens']}"
                exact = f"{row['difference']:.2g} nats, perplexity {row['perplexity'] / row['ours'] - 1:+.3%}"
            print(f"| {row['export']} | {opened} | {same} | {exact} |")


def _judged(perplexity: float, ours: float, allowed: float) -> Row:
    ratio = perplexity / ours
    within = abs(ratio - 1) <= allowed
    return {"perplexity": perplexity, "ours": ours, "ratio": ratio, "allowed": allowed, "within": within}


def _name(kind: str, settings: dict[str, Any]) -> str:
    if kind == "gguf":
        return f"{kind}-{settings.get('type') or settings['mixture']}"
    group = settings.get("group_size", 64)
    words = f"{'sym' if settings.get('sym') else 'asym'}{settings['bits']}-{'channel' if group == -1 else f'g{group}'}"
    return f"{kind}-{words}{'-a8' if 'act_bits' in settings else ''}"


def _tool(tools: Path, name: str, *options: str, errors: bool = True) -> tuple[int, str]:
    done = subprocess.run(
        [str(tools / f"llama-{name}"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    said = done.stdout.decode("utf-8", "replace").strip()
    if "--version" in options:
        version = re.search(r"version: (.+)", said)
        return done.returncode, version[1] if version else said.splitlines()[0]
    return done.returncode, said


def _environment() -> dict[str, str]:
    """Without what would let our own packages into another environment."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word"


def _short(row: Row) -> str:
    if "error" in row:
        return _line(row["error"])
    return f"{row['ratio'] - 1:+.3%}" if "ratio" in row else f"{row['difference']:.2g}"


def _line(words: str) -> str:
    return " ".join(words.split())[:300].replace("|", "\\|")


if __name__ == "__main__":
    main()
