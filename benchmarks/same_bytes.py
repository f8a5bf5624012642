"""Hashes of what is written, for a change that must not change it: all methods and formats on a small model.

    python benchmarks/same_bytes.py > before.json        # at the commit before
    python benchmarks/same_bytes.py --against before.json

Every case is a run on the tests' small Llama (twelve samples of the tests' text), in memory and streamed, and what
`roundel.evaluate` says of the result. Files that tell of time and place (manifest, report) are left out. The second
form prints what differs, and exits with 1. A minute or two on one thread.
"""

import hashlib
import json
import os
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

import roundel
from zoo import manual_text, zoo_model

DATA = {"nsamples": 12, "seqlen": 48, "batch_size": 4}
TUNED = {**DATA, "iters": 12}
CASES: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "rtn sym": {"method": "rtn", "sym": True, "bits": 3},
    "rtn searched": {"method": "rtn", "start": "search", **{k: DATA[k] for k in ("nsamples", "seqlen")}},
    "gptq": {"method": "gptq", **DATA},
    "gptq in act order": {"method": "gptq", "order": "act_order", "format": "roundel", **DATA},
    "gptq on unquantized inputs": {"method": "gptq", "use_quant_input": False, **DATA},
    "spqr": {"method": "spqr", "outliers": 0.01, "format": "roundel", **DATA},
    "spqr by budget": {"method": "spqr", "target_bits": 5.5, "format": "dense", **DATA},
    "signround": {"method": "signround", **TUNED},
    "autoround": {"method": "autoround", **TUNED},
    "autoround W4A8 KV8": {"method": "autoround", "act_bits": 8, "kv_bits": 8, "format": "dense", **TUNED},
    "smoothed static W8A8": {
        "method": "autoround",
        "bits": 8,
        "sym": True,
        "act_bits": 8,
        "act_scale": "static",
        "smooth": 0.5,
        **TUNED,
    },
    "flexround": {"method": "flexround", **TUNED},
    "flexround with offsets": {"method": "flexround", "offsets": True, **TUNED},
    "lrq": {"method": "lrq", **TUNED},
    "autoround with a head": {"method": "autoround", "lm_head": True, "sym": True, **TUNED},
    "several widths": {
        "method": "autoround",
        "sym": True,
        "layers": {"*.up_proj": {"bits": 3}},
        "skip": ["*.k_proj"],
        **TUNED,
    },
}
LEFT_OUT = ("roundel.json", "report.json", "report.html")


def main() -> None:
    """Print or compare."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "text.txt"
        text.write_text(manual_text(), encoding="utf-8")
        for case, settings in CASES.items():
            for stream in (False, True):
                words = f"{case}, {'streamed' if stream else 'in memory'}"
                found[words] = _hashes(settings, stream, text, Path(name) / words)
    if arguments.against is None:
        print(json.dumps(found, indent=1))
        return
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    differing = [case for case in before.keys() | found.keys() if before.get(case) != found.get(case)]
    for case in sorted(differing):
        print(f"{case}: {before.get(case)} before, {found.get(case)} now")
    print(f"{len(found) - len(differing)} of {len(found)} cases have the same bytes")
    sys.exit(bool(differing))


def _hashes(settings: dict[str, Any], stream: bool, text: Path, out: Path) -> dict[str, Any]:
    recipe = roundel.Recipe(**{"bits": 4, "group_size": 32, **settings})
    data = {"calibration": str(text)} if recipe.needs_calibration else {}
    roundel.quantize(zoo_model("llama"), recipe, output=out, stream=stream, held_out=None, **data)
    files = sorted(path for path in out.iterdir() if path.name not in LEFT_OUT)
    hashes: dict[str, Any] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in files}
    measured = roundel.evaluate(out, reference=zoo_model("llama"), text=str(text), window=64, limit=2).texts[
        0
    ]
    return {**hashes, "perplexity": measured.perplexity.value, "kl": measured.kl.mean.value}


if __name__ == "__main__":
    main()
