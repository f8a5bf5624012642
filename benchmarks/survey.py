"""Every class of language models of transformers, small and with random weights: docs/survey.md, docs/survey-inside.md.

    python benchmarks/survey.py > docs/survey.md
    python benchmarks/survey.py --inside > docs/survey-inside.md
    python benchmarks/survey.py mixtral gpt_oss

The configuration of each class is shrunk by the names of its fields (survey_sizes.py). The model is quantized with
GPTQ; its blocks, run one by one as Roundel runs them, are compared with the model; and a dense folder is written and
opened again by transformers. Each class has a process of its own. One thread, minutes in all.
"""

import copy
import multiprocessing
import os
import re
import sys
import tempfile
import textwrap
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

import roundel
from roundel.model.blocks import find_blocks
from roundel.model.capture import BlockRunner
from roundel.model.classes import auto_class
from roundel.model.text_path import text_model
from survey_sizes import (
    EXCEPTIONS,
    HEAD,
    HEADS,
    LAYER_COUNTS,
    LAYERS,
    SIZES,
    SPECIAL_TOKENS,
    UNSET,
    VOCABULARY,
)

ROWS, LENGTH, BATCH = 4, 16, 2
GPTQ = roundel.Recipe(
    method="gptq", bits=4, group_size=16, nsamples=ROWS, seqlen=LENGTH, batch_size=BATCH, amp="float32"
)
RTN = roundel.Recipe(method="rtn", bits=4, group_size=16, format="dense")

# A model with more parameters was not shrunk.
MOST_PARAMETERS = 30_000_000
# Seconds for one class.
TIME_LIMIT = 120
# Blocks agree with the model if the relative error of what its head sees is no larger.
TOLERANCE = 1e-5
# Layers of a list that are kept for its kinds.
MOST_LAYERS = 8
# Characters of a message.
WIDTH = 300
# The folders of a path.
PLACE = re.compile(r"(?<![\w./:])/(?:[\w.-]+/)+")

# Of a configuration, but no settings of a model.
NO_SETTINGS = (
    "architectures",
    "dtype",
    "id2label",
    "ignore_keys_at_rope_validation",
    "label2id",
    "model_type",
    "transformers_version",
)

ALONE = """# Every class of causal language models

Written by `python benchmarks/survey.py > docs/survey.md`; nothing here is typed by hand. Each class that
`AutoModelForCausalLM` of transformers knows"""
INSIDE = """# Language models inside models that see or hear

Written by `python benchmarks/survey.py --inside > docs/survey-inside.md`; nothing here is typed by hand. Each class
that `AutoModelForMultimodalLM` of transformers knows, but for those whose decoder reads an encoder's output
(Florence-2, T5Gemma 2), which Roundel refuses; what of them reads text is quantized, calibrated with text alone"""
REST_OF_HEAD = f""", with a configuration that was made small (about {LAYERS} layers of width
{SIZES["hidden_size"]}) and random weights. This is about structure; about quality there is [models.md](models.md).
transformers {version("transformers")}, torch {version("torch")}, Roundel {version("roundel")}.

Settings: GPTQ and RTN with {GPTQ.bits} bits and groups of {GPTQ.group_size}; {ROWS} x {LENGTH} random tokens in
batches of {BATCH}; float32. Nobody tells Roundel which modules are the blocks.

* Linears, experts: matrices that are quantized, outside and inside stacks of experts. "Quantized by GPTQ" is the number
  of those among them that saw tokens enough; others are rounded to nearest: most of them are experts, which share few
  tokens, or cross-attention of a decoder that has no encoder.
* Blocks agree: all batches go through one block after the other, as when Roundel quantizes; the relative error of what
  the head sees then, against the model itself. `=`: bit for bit. Bold: above {TOLERANCE:.0e}.
* Folder opens again: rounded to nearest and written as dense weights, the folder has, opened by transformers alone, the
  logits of the model in memory (`=`), or they differ by as much.
* Beside: matrices of towers for pictures or sound, and of what joins them to the text decoder; they stay as they are.
"""


@dataclass
class Answer:
    """What came of one class.

    Attributes:
        not_built: why transformers builds or runs no small model of it.
        not_quantized: why there is no result of GPTQ.
        refused: that was said by Roundel; else something broke.
        linears: quantized matrices, those in stacks of experts left aside.
        experts: quantized matrices in stacks of experts.
        by_gptq: those of both that saw tokens enough for GPTQ.
        beside: matrices that are no part of the text decoder.
        blocks: relative error of what the head sees, or why there is none.
        folder: the largest difference of logits after the folder was opened again, or why it was not.
    """

    not_built: str | None = None
    not_quantized: str | None = None
    refused: bool = False
    linears: int = 0
    experts: int = 0
    by_gptq: int = 0
    beside: int = 0
    blocks: float | str = ""
    folder: float | str = ""

    @property
    def works(self) -> bool:
        """Whether there is a quantized model."""
        return self.not_built is None and self.not_quantized is None


def main() -> None:
    """Print the page."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types; all of them, if none is given")
    parser.add_argument(
        "--inside", action="store_true", help="language models inside models that see or hear"
    )
    given = parser.parse_args()
    names, inside = given.names, given.inside
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    answers: dict[str, Answer] = {}
    for name, config_class, model_class in classes_inside() if inside else classes():
        if not names or name in names:
            print(name, file=sys.stderr, flush=True)
            answers[name] = ask_apart(config_class, model_class)
    print(page((INSIDE if inside else ALONE) + REST_OF_HEAD, answers))


def classes() -> Iterator[tuple[str, Any, Any]]:
    """Model type, class of the configuration and class of the model, of language models alone."""
    # The mapping names GPT-2 twice, a dictionary does not.
    for config_class, model_class in dict(MODEL_FOR_CAUSAL_LM_MAPPING.items()).items():
        yield config_class.model_type, config_class, model_class


def classes_inside() -> Iterator[tuple[str, Any, Any]]:
    """The same of models that see or hear, without an encoder of text."""
    for config_class, model_class in dict(MODEL_FOR_MULTIMODAL_LM_MAPPING.items()).items():
        if not getattr(config_class(), "is_encoder_decoder", False):
            yield config_class.model_type, config_class, model_class


def ask_apart(config_class: Any, model_class: Any) -> Answer:
    """The answer of a process that may crash, or run for ever."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send, args=(sender, config_class, model_class, Path(folder)))
        process.start()
        sender.close()
        try:
            if receiver.poll(TIME_LIMIT):
                return receiver.recv()
            why = f"not finished in {TIME_LIMIT} seconds"
        except EOFError:
            why = "the process ended without an answer"
        finally:
            process.kill()
            process.join()
    return Answer(not_quantized=why, folder=why)


def send(sender: Connection, config_class: Any, model_class: Any, folder: Path) -> None:
    """What the process of one class does."""
    with redirect_stdout(sys.stderr):
        sender.send(ask(config_class, model_class, folder))


def ask(config_class: Any, model_class: Any, folder: Path) -> Answer:
    """Build a small model and try everything."""
    answer = Answer()
    try:
        model = build(config_class, model_class)
    except Exception as error:
        answer.not_built = message(error)
        return answer
    quantize(copy.deepcopy(model), answer)
    answer.blocks = tried(lambda: blocks_error(model))
    answer.folder = tried(lambda: folder_difference(model, folder))
    return answer


def quantize(model: Any, answer: Answer) -> None:
    """With GPTQ, in memory."""
    try:
        done = roundel.quantize(model, GPTQ, calibration=tokens())
    except Exception as error:
        answer.not_quantized = message(error)
        answer.refused = isinstance(error, roundel.RoundelError)
        return
    quantized = [layer for layer in done.manifest["layers"] if layer["bits"] is not None]
    answer.experts = sum(layer["kind"] == "Expert" for layer in quantized)
    answer.linears = len(quantized) - answer.experts
    answer.beside = sum(
        layer["reason"].startswith("no part of the text decoder") for layer in done.manifest["layers"]
    )
    answer.by_gptq = sum(not layer["note"].startswith("rounded to nearest") for layer in quantized)


@torch.no_grad()
def blocks_error(model: Any) -> float:
    """Largest relative error of what the head sees, when all batches go through one block after the other."""
    head = text_model(model).get_output_embeddings()
    wanted: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: wanted.append(args[0]))
    for batch in tokens().split(BATCH):
        logits(model, batch)
    handle.remove()
    stack = find_blocks(model)
    runner = BlockRunner(model, stack, tokens())
    runner.prepare(BATCH)
    hidden = list(runner.first_inputs(BATCH))
    for index in range(len(stack)):
        hidden = [runner.run(index, batch) for batch in hidden]
    found = [runner.inputs_of(head, batch) for batch in hidden]
    errors = [(one - other).norm() / other.norm() for one, other in zip(found, wanted, strict=True)]
    return float(torch.stack(errors).max())


def folder_difference(model: Any, folder: Path) -> float:
    """Round to nearest, write dense weights, open them again: largest difference of logits."""
    model.save_pretrained(folder / "original")
    done = roundel.quantize(folder / "original", RTN, output=folder / "written")
    config = AutoConfig.from_pretrained(folder / "written")
    opened = auto_class(config).from_pretrained(folder / "written").eval()
    return float((logits(opened, tokens()) - logits(done.model, tokens())).abs().max())


def build(config_class: Any, model_class: Any) -> Any:
    """A small model with random weights that runs."""
    config = small_config(config_class, model_class)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in model_class._from_config(copy.deepcopy(config)).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"not shrunk: {count} parameters")
    torch.manual_seed(0)
    model = model_class._from_config(config).float().eval()
    fill(model)
    if not logits(model, tokens()[:BATCH]).isfinite().all():
        raise ValueError("logits are not finite")
    return model


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Random numbers for weights that the class leaves unset, and for matrices that it leaves at zero."""
    for weight in model.parameters():
        largest = weight.abs().max()
        if not largest < 1e3 or (largest == 0 and weight.ndim > 1):
            weight.normal_(0, 0.02)


def small_config(config_class: Any, model_class: Any) -> Any:
    """The configuration that a class of models takes, shrunk."""
    config = config_class()
    if not isinstance(config, model_class.config_class):
        config = config.get_text_config(decoder=True)
    return type(config)(**shrunk(config))


def shrunk(config: Any, layers: int = LAYERS) -> dict[str, Any]:
    """The fields of a configuration, and of those inside it, with small values."""
    count = next(
        (getattr(config, key) for key in LAYER_COUNTS if isinstance(getattr(config, key, None), int)), 0
    )
    kept = kept_layers(config, count, layers)
    fields = {}
    for key, value in vars(config).items():
        if key.startswith("_") or key in NO_SETTINGS:
            continue
        if hasattr(value, "to_dict"):
            fields[key] = shrunk(value, 1 if "vision" in key or "audio" in key else LAYERS)
        elif key == "is_decoder":
            fields[key] = value or not getattr(config, "is_encoder_decoder", False)
        elif "rope" in key and isinstance(value, dict):
            fields[key] = shrunk_rope(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            fields[key] = shrunk_number(config, key, value, len(kept))
        elif isinstance(value, list | tuple):
            fields[key] = shrunk_list(key, list(value), count, kept)
        else:
            fields[key] = value
    fields |= EXCEPTIONS.get(getattr(config, "model_type", ""), {})
    return {key: value for key, value in fields.items() if value is not UNSET}


def shrunk_number(config: Any, key: str, value: int, layers: int) -> int:
    """A size, a count or a token id."""
    if key in SPECIAL_TOKENS:
        return SPECIAL_TOKENS[key]
    if key.endswith(("_token_id", "_token_index")):
        return min(value, VOCABULARY - 1)
    if "num_key_value_heads" in key or key == "num_kv_heads":
        of_queries = key.replace("key_value", "attention").replace("kv", "attention")
        heads = vars(config).get(of_queries) or vars(config).get("num_attention_heads")
        return HEADS if value == heads else min(value, HEADS // 2)
    if key in LAYER_COUNTS and layers:
        return layers
    return min(value, SIZES.get(key, value))


def shrunk_list(key: str, values: list[Any], count: int, kept: list[int]) -> list[Any]:
    """A list with an entry for each layer, or of numbers of layers."""
    if key in SPECIAL_TOKENS:
        return [SPECIAL_TOKENS[key]]
    if count > 1 and len(values) == count:
        return [min(values[index], SIZES[key]) if key in SIZES else values[index] for index in kept]
    of_layers = key.endswith(("layers", "layer_ids", "idxs", "indices", "indexes"))
    if kept and of_layers and all(isinstance(value, int) for value in values):
        return [place for place, index in enumerate(kept) if index in values]
    return values


def kept_layers(config: Any, count: int, wanted: int) -> list[int]:
    """Numbers of the layers that stay: the first of each kind, then others."""
    lists = [
        value for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == count
    ]
    first: dict[str, int] = {}
    for index in range(count):
        kind = [values[index] for values in lists if not isinstance(values[index], float)]
        first.setdefault(repr(kind), index)
    kinds = list(first.values())[:MOST_LAYERS]
    others = [index for index in range(count) if index not in kinds]
    return sorted(kinds + others[: max(0, wanted - len(kinds))])


def shrunk_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Settings of rotary embeddings, which may be those of several kinds of attention."""
    small = {}
    for key, value in rope.items():
        if isinstance(value, dict):
            small[key] = shrunk_rope(value)
        elif key == "mrope_section":
            pairs = int(HEAD * rope.get("partial_rotary_factor", 1)) // 2
            small[key] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
        elif key in ("long_factor", "short_factor"):
            small[key] = [1.0] * (HEAD // 2)
        elif key == "original_max_position_embeddings":
            small[key] = SIZES[key] // 2
        else:
            small[key] = value
    return small


def tokens() -> torch.Tensor:
    """Token ids `[rows, length]`."""
    return torch.randint(3, 100, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """`[rows, length, vocabulary]`."""
    return text_model(model)(input_ids=ids, use_cache=False).logits.float()


def tried(step: Callable[[], float]) -> float | str:
    """A figure, or why there is none."""
    try:
        return step()
    except Exception as error:
        return message(error)


def message(error: Exception) -> str:
    """In one line, without the folders of this machine."""
    said = str(error).replace("`", "'")
    if not isinstance(error, roundel.RoundelError):
        said = f"{type(error).__name__}: {said}"
    return textwrap.shorten(PLACE.sub("", said), WIDTH, placeholder=" ...")


def page(head: str, answers: dict[str, Answer]) -> str:
    """Markdown."""
    not_built = {name: answer.not_built for name, answer in answers.items() if answer.not_built}
    done = {name: answer for name, answer in answers.items() if answer.works}
    refused = {name: answer for name, answer in answers.items() if answer.refused}
    broken = {name: answer for name, answer in answers.items() if answer.not_quantized and not answer.refused}
    lines = [
        head,
        f"* {len(answers)} classes, of which {len(answers) - len(not_built)} are built and run.",
        f"* Quantized: {len(done)}. The blocks agree with the model to {TOLERANCE:.0e} in "
        f"{sum(agree(answer.blocks, TOLERANCE) for answer in done.values())} of them, the folder opens with the same "
        f"logits in {sum(agree(answer.folder, 0) for answer in done.values())}.",
        f"* Refused by Roundel, which says why: {len(refused)}. Failed with another error: {len(broken)}.",
        f"* Not built, or not run, by transformers itself: {len(not_built)}.",
        "",
        "## Quantized",
        "",
        "| model type | Linears | experts | quantized by GPTQ | beside | blocks agree (error) | folder opens again |",
        "|---|---|---|---|---|---|---|",
        *(row(name, answer) for name, answer in done.items()),
        *section(
            "Blocks that were not compared", {name: said(answer.blocks) for name, answer in done.items()}
        ),
        *section("Folders that do not open", {name: said(answer.folder) for name, answer in done.items()}),
        *section("Refused", {name: failure(answer) for name, answer in refused.items()}),
        *section("Failed with another error", {name: failure(answer) for name, answer in broken.items()}),
        *section(
            "Not built or not run by transformers",
            {name: f"`{reason}`" for name, reason in not_built.items()},
        ),
    ]
    return "\n".join(lines)


def row(name: str, answer: Answer) -> str:
    """Of the table."""
    cells = [
        name,
        answer.linears,
        answer.experts or "",
        answer.by_gptq,
        answer.beside or "",
        figure(answer.blocks, TOLERANCE),
        figure(answer.folder, 0),
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def figure(value: float | str, tolerance: float) -> str:
    """A cell: equal, an error, or none."""
    if isinstance(value, str):
        return "no"
    if value == 0:
        return "="
    return f"{value:.1e}" if agree(value, tolerance) else f"**{value:.1e}**"


def agree(value: float | str, tolerance: float) -> bool:
    """Whether there is an error, and one that is small enough."""
    return not isinstance(value, str) and value <= tolerance


def said(value: float | str) -> str:
    """The reason where there is no figure."""
    return f"`{value}`" if isinstance(value, str) else ""


def failure(answer: Answer) -> str:
    """Why GPTQ has no result, and what came of RTN."""
    if not isinstance(answer.folder, str):
        rtn = f"the folder opens again, {figure(answer.folder, 0)}"
    elif answer.folder == answer.not_quantized:
        rtn = "the same"
    else:
        rtn = f"`{answer.folder}`"
    return f"`{answer.not_quantized}` RTN: {rtn}."


def section(title: str, reasons: dict[str, str]) -> list[str]:
    """A list of model types with reasons, if there are any."""
    items = [f"* {name}: {reason}" for name, reason in reasons.items() if reason]
    return ["", f"## {title}", "", *items] if items else []


if __name__ == "__main__":
    main()
