"""What an older transformers makes of an output: the logits of this one, and the ids of the source's own tokenizer.

    python benchmarks/older_transformers.py [MODEL ...] [--version 4.57.6]

The older version is installed into a folder of its own (about a minute), and runs there with this environment's torch.
Models: folders or GGUF files; without any, small models of the tests, whose configs are of the newest form, with a
rotary base that is no default: an older version that overlooks it would say something else. Each is quantized with RTN
to 4 bits and written dense; both versions open the folder and run the same ids in float32. Exits with 1 where logits or
ids differ.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import roundel
from zoo import zoo_model
from zoo.gguf_file import write_gguf

SMALL = ("llama", "qwen3", "gemma3", "gpt_neox", "phi3", "mistral", "olmo2", "opt")
TEXT = "Once upon a time<|end_story|> x, <unk>  two  blanks\n\n\tжзя 文字 עברית é 😀"

# Runs under either version: a folder, the source's folder, and the file for what was found.
READER = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, source, text, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
ids = torch.arange(3, 67).view(2, 32)
with torch.no_grad():
    logits = model(ids).logits
torch.save(logits, out)
tokens = []
for place in (source, folder):
    try:
        tokens.append(AutoTokenizer.from_pretrained(place)(text)["input_ids"])
    except Exception as error:  # the source's own may not open there
        tokens.append(type(error).__name__)
print(json.dumps({"version": transformers.__version__, "tokens": tokens}))
"""


def main() -> None:
    """The table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--version", default="4.57.6")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        models = arguments.models or [_small(name, place / name) for name in SMALL]
        if not arguments.models:
            models.append(write_gguf(models[0], place / "llama.gguf"))
        older = _install(arguments.version, place / "older")
        print(
            f"| model | largest difference of logits | ids of its tokenizer |\n|---|---|---|  ({arguments.version})"
        )
        wrong = [model for model in models if not _agree(model, older, place)]
    sys.exit(bool(wrong))


def _install(version: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--target",
        str(folder),
        f"transformers=={version}",
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return folder


def _small(name: str, folder: Path) -> Path:
    """A model of the tests with another rotary base, if it has one."""
    shutil.copytree(zoo_model(name), folder)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = about.get("rope_parameters", {})
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if "rope_theta" in part:
            part["rope_theta"] *= 0.37
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def _agree(model: Path, older: Path, place: Path) -> bool:
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    recipe = roundel.Recipe(method="rtn", bits=4, group_size=32, format="dense")
    roundel.quantize(model, recipe, output=out, held_out=None)
    found = {
        name: _read(out, model, path, place / f"{name}.pt") for name, path in (("new", None), ("old", older))
    }
    import torch

    assert found["old"]["version"] != found["new"]["version"]
    new, old = (torch.load(place / f"{name}.pt", weights_only=True) for name in ("new", "old"))
    difference = float((new - old).abs().max())
    wanted, (before, after) = found["new"]["tokens"][1], found["old"]["tokens"]
    opens = isinstance(before, list) or model.suffix == ".gguf"
    ids = (
        ("the same" if after == wanted else f"{wanted}, there {after}")
        if opens
        else f"the source's: {before}"
    )
    print(f"| {model.name} | {difference:.2g} of {float(new.abs().max()):.3g} | {ids} |")
    return difference <= 1e-3 * float(new.abs().max()) and (after == wanted or not opens)


def _read(out: Path, source: Path, packages: Path | None, logits: Path) -> dict[str, Any]:
    environment = {**os.environ, **({"PYTHONPATH": str(packages)} if packages else {})}
    done = subprocess.run(
        [sys.executable, "-c", READER, str(out), str(source), TEXT, str(logits)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{out.name} of {source.name}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
