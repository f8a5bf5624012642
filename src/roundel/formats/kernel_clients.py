"""Which clients open folders in the layouts of GPTQ, AWQ and AutoRound, as tried (docs/formats.md).

What some of them do not read, they refuse, with two exceptions: onnxruntime-genai takes zero points of GPTQ's second
version for those of the first, and transformers leaves a quantized head at random values, of GPTQ's and AWQ's files.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from roundel.formats.container import Layer
from roundel.formats.readers import Readers
from roundel.grid.scheme import Scheme
from roundel.model.linears import linears_in

_GPTQ = "transformers with gptqmodel"
_AUTOROUND = "transformers with auto-round"
_GENAI = "onnxruntime-genai"
_VLLM, _VLLM_GPU = "vLLM", "vLLM on a GPU"
_NO_HEAD = "transformers leaves a quantized head at random values, without an error: set lm_head=false"
# Its kernel on a CPU reads rows and outputs in these.
_VLLM_ROUND = 32


@dataclass(frozen=True)
class Facts:
    """What clients differ about.

    Attributes:
        bits: widths of all layers.
        groups: as written; -1 per channel.
        symmetric: all layers are.
        mixed: layers differ in width, group size or symmetry.
        ordered: columns may have an order of their own.
        head: the output head is among the layers.
        part: some Linears in blocks are left out.
        experts: are among the layers.
        round: all sizes are multiples of what vLLM's kernel on a CPU reads.
    """

    bits: frozenset[int]
    groups: frozenset[int]
    symmetric: bool
    mixed: bool
    ordered: bool
    head: bool
    part: bool
    experts: bool
    round: bool


def facts_of(layers: Collection[Layer], schemes: Collection[Scheme], model: Any, head: str | None) -> Facts:
    """Of a model's quantized layers and their schemes as they are written."""
    named = {layer.name for layer in layers}
    return Facts(
        bits=frozenset(scheme.bits for scheme in schemes),
        groups=frozenset(scheme.group_size for scheme in schemes),
        symmetric=all(scheme.sym for scheme in schemes),
        mixed=len({(s.bits, s.group_size, s.sym) for s in schemes}) > 1,
        ordered=any(layer.permuted for layer in layers),
        head=head in named,
        part=any(view.name not in named and view.name != head for view in linears_in(model, "")),
        experts=any(layer.kind == "Expert" for layer in layers),
        round=all(size % _VLLM_ROUND == 0 for layer in layers for size in layer.shape),
    )


def gptq_readers(facts: Facts, *, first_version: bool) -> Readers:
    """Of GPTQ's format."""
    if facts.experts:
        return Readers(("roundel",), "Other clients are untried with experts")
    clients: list[str] = []
    hints: list[str] = []
    if facts.mixed:
        hints.append("transformers reads one width, group size and symmetry in a file")
    elif facts.groups == {-1}:
        hints.append("GPTQModel fails on a CPU with groups of whole rows, but with backend=GPTQ_TORCH")
    elif facts.head:
        hints.append(_NO_HEAD)
    else:
        clients.append(_GPTQ)
    if facts.groups != {-1} and (facts.symmetric or not first_version):
        clients.append("GPTQModel")
    elif not facts.symmetric and first_version:
        hints.append("GPTQModel itself takes zero points of others in --format gptq_v2 only")
    _add_vllm(facts, clients, hints)
    if facts.symmetric and facts.ordered:
        hints.append("vLLM reads no order of columns: set order=group_aware or static_groups=true")
    if not facts.symmetric:
        hints.append("Not in vLLM, which reads zero points in --format awq only: or set sym=true")
    if not first_version:
        hints.append(f"{_GENAI} takes zero points for others, without a word: use --format gptq there")
    elif not facts.mixed and not facts.part and facts.bits <= {2, 4, 8} and facts.groups != {-1}:
        clients.append(_GENAI)
    return Readers(tuple(clients) or ("roundel",), ". ".join(hints))


def _add_vllm(facts: Facts, clients: list[str], hints: list[str]) -> None:
    """Its kernels for layouts without zero points."""
    if not facts.symmetric or facts.ordered:
        return
    if not facts.bits <= {4, 8}:
        hints.append("Not in vLLM, which reads 4 and 8 bits of this format")
    elif facts.bits == {4} and facts.round:
        clients.append(_VLLM)
    else:
        clients.append(_VLLM_GPU)
        hints.append(f"vLLM on a CPU reads 4 bits, and sizes in multiples of {_VLLM_ROUND}")


def awq_readers(facts: Facts) -> Readers:
    """Of AWQ's format."""
    if facts.experts:
        return Readers(("roundel",), "Other clients are untried with experts")
    clients: list[str] = []
    hints: list[str] = []
    if facts.groups == {-1}:
        hints.append("GPTQModel fails on a CPU with groups of whole rows, but with backend=AWQ_TORCH")
    else:
        clients += ["GPTQModel"] if facts.head else [_GPTQ, "GPTQModel"]
    if facts.head:
        hints.append(_NO_HEAD)
    clients.append(_VLLM if facts.round else _VLLM_GPU)
    if not facts.part and facts.groups != {-1}:
        clients.append(_GENAI)
    return Readers(tuple(clients), ". ".join(hints))


def auto_round_readers(facts: Facts) -> Readers:
    """Of AutoRound's format."""
    if facts.experts:
        return Readers(("roundel",), "Other clients are untried with experts")
    clients, hints = [_AUTOROUND], list[str]()
    if facts.symmetric:
        _add_vllm(facts, clients, hints)
    else:
        hints.append("Not in vLLM, which reads zero points in --format awq only: or set sym=true")
    return Readers(tuple(clients), ". ".join(hints))
