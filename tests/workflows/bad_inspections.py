"""Folders, recipes and manifests that cannot be inspected."""

from bad_inputs.box import WEIGHTS
from bad_inputs.case import area
from zoo import zoo_model

ROWS = [
    ("no such folder", 3, "no folder", lambda b: ["inspect", "./none"]),
    ("an empty folder", 3, "no config.json", lambda b: ["inspect", (b.write("none/x", ""), b / "none")[1]]),
    (
        "a recipe for a folder that is quantized already",
        2,
        "is quantized already, so there is nothing for a recipe to decide",
        lambda b: ["inspect", b.quantized(), "--method", "rtn"],
    ),
    (
        "a pattern that matches no Linear",
        2,
        "matches no Linear",
        lambda b: ["inspect", zoo_model("llama"), "--set", "skip=['*.wq']"],
    ),
    (
        "blocks of a name that nothing has",
        3,
        "module lists found: model.layers (2 modules)",
        lambda b: ["inspect", zoo_model("llama"), "--blocks", "transformer.h.*"],
    ),
    (
        "a manifest that is no JSON",
        3,
        "a JSON file is expected",
        lambda b: ["inspect", b.quantized(name="roundel.json", content="{")],
    ),
    (
        "a manifest that is a list",
        3,
        "it holds list",
        lambda b: ["inspect", b.quantized(name="roundel.json", content="[]")],
    ),
    (
        "a manifest without layers",
        3,
        "layers: field required",
        lambda b: ["inspect", b.manifest(lambda m: m.pop("layers"))],
    ),
    (
        "words for a figure of a layer",
        3,
        "layers.0.error: input should be a valid number",
        lambda b: ["inspect", b.manifest(lambda m: m["layers"][0].update(error="small"))],
    ),
    (
        "a layer of a later version",
        3,
        "which this roundel does not know",
        lambda b: ["inspect", b.manifest(lambda m: m["layers"][0].update(colour=5))],
    ),
    (
        "a model of no parameters",
        3,
        "greater than 0",
        lambda b: ["inspect", b.manifest(lambda m: m["original"].update(parameters=0))],
    ),
    (
        "weights absent",
        3,
        "no weights in",
        lambda b: ["inspect", (q := b.quantized(), (q / WEIGHTS).unlink())[0]],
    ),
    ("weights cut", 3, "cannot be read", lambda b: ["inspect", b.quantized(name=WEIGHTS, content="12")]),
]

AREA = area("`roundel inspect`", ROWS)
