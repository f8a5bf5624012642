"""`--blocks` with names of what are no blocks."""

from bad_inputs.case import area
from bad_inputs.commands import ON_DATA, plain
from zoo import zoo_model

ROWS = [
    (
        "a name that no module has",
        3,
        "is named like 'transformer.h': the name of the blocks' list",
        plain("--blocks", "transformer.h"),
    ),
    (
        "modules without Linears",
        3,
        "no module of LlamaForCausalLM that holds Linears is named like",
        plain("--blocks", "model.embed_tokens"),
    ),
    (
        "modules that are no chain",
        3,
        "is not fed with the output of the block before it",
        lambda b: ["quantize", zoo_model("llama"), *ON_DATA, "--blocks", "model.layers.*.mlp.*_proj"],
    ),
]

AREA = area("`--blocks`", ROWS)
