"""A model larger than the memory that a run may have: Llama-2-7B's shape, random weights, measured peaks.

    python benchmarks/large_model.py /tmp/large --blocks 32 --methods rtn
    python benchmarks/large_model.py /tmp/large --blocks 3 --methods gptq autoround

The model is written shard by shard in 16 bit (13.5 GB with all its 32 blocks) and deleted afterwards. Every run is
the command line in a process of its own, which is ended if it holds more than `--limit` GiB. Weights are random with
some wide rows: for memory and time, not for quality.
"""

import json
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

GIB = 1 << 30
METHODS: dict[str, list[str]] = {
    "rtn": ["--method", "rtn"],
    "gptq": ["--method", "gptq"],
    "spqr": ["--method", "spqr", "--bits", "3", "--outliers", "0.5%"],
    "autoround": ["--method", "autoround", "--set", "iters=4", "--set", "batch_size=2"],
    "lrq": ["--method", "lrq", "--set", "iters=4", "--set", "batch_size=2"],
}


def main() -> None:
    """Write the model, run the methods, print the table."""
    arguments = parse()
    folder = Path(arguments.folder) / f"llama-7b-{arguments.blocks}"
    if not (folder / "model.safetensors.index.json").is_file():
        write_model(folder, arguments.blocks)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    ids = Path(arguments.folder) / "ids.pt"
    generator = torch.Generator().manual_seed(1)
    torch.save(torch.randint(32000, (arguments.samples, arguments.seqlen), generator=generator), ids)
    print(f"Model: {arguments.blocks} blocks, {size / GIB:.2f} GiB in 16 bit", flush=True)
    print("| method | planned peak GiB | measured peak GiB | seconds | per block |")
    print("|---|---|---|---|---|")
    for method in arguments.methods:
        row = run(arguments, folder, ids, method)
        print(
            f"| {method} | {row['planned'] / GIB:.2f} | {row['peak'] / GIB:.2f} | {row['seconds']:.0f} | "
            f"{row['seconds'] / arguments.blocks:.1f} |",
            flush=True,
        )
    if not arguments.keep:
        shutil.rmtree(folder)


def write_model(folder: Path, blocks: int) -> None:
    """Random weights, a shard a block."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in skeleton.state_dict().items():
        part = name.split(".")[2] if ".layers." in name else "outside"
        shards.setdefault(part, {})[name] = tensor.shape
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    for number, shapes in enumerate(shards.values(), 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: draw(shape, generator) for name, shape in shapes.items()}, folder / file)
        index |= dict.fromkeys(shapes, file)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def draw(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A norm's ones, or a matrix of small numbers whose every hundredth row is wide."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    weight = torch.randn(shape, generator=generator).mul_(0.02)
    weight[::100] *= 4
    return weight.bfloat16()


def run(arguments: Namespace, folder: Path, ids: Path, method: str) -> dict[str, Any]:
    """One method, watched; ended above the limit."""
    out = Path(arguments.folder) / f"out-{method}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "roundel", "quantize", str(folder), "-o", str(out), *METHODS[method]]
    if method != "rtn":
        command += ["--calibration", str(ids), "--set", f"nsamples={arguments.samples}"]
        command += ["--set", f"seqlen={arguments.seqlen}"]
    began = time.monotonic()
    process = subprocess.Popen(command)
    peak = watch(process, arguments.limit * GIB)
    seconds = time.monotonic() - began
    if process.returncode:
        sys.exit(f"{method} ended with {process.returncode} at {peak / GIB:.2f} GiB")
    manifest = json.loads((out / "roundel.json").read_text(encoding="utf-8"))
    shutil.rmtree(out)
    return {
        "planned": manifest["plan"]["peak_bytes"],
        "peak": max(peak, manifest["peak_memory_bytes"]),
        "seconds": seconds,
    }


def watch(process: "subprocess.Popen[bytes]", limit: float) -> int:
    """The largest resident memory that a process had."""
    seen = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, seen.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        if peak > limit:
            process.kill()
        time.sleep(0.02)
    process.wait()
    return peak


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", help="for the model and the outputs")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["rtn"])
    parser.add_argument("--limit", type=float, default=6.0, help="GiB of resident memory")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--keep", action="store_true", help="do not delete the model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
