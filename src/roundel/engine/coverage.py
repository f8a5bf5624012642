"""Which layer gets which grid, decided before anything runs; no layer is passed over in silence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from roundel.engine.mixed import mixed_types, name_of
from roundel.errors import ModelError, RecipeError
from roundel.grid.block_types import BlockTypeName
from roundel.grid.budget import scheme_within
from roundel.grid.scheme import Scheme
from roundel.model.blocks import BlockStack, linears_outside
from roundel.model.experts import stacked_in, stacks_in
from roundel.model.linears import LinearView
from roundel.model.mixtures import routers
from roundel.model.text_path import text_model
from roundel.recipe import Recipe
from roundel.records.outcome import EXTRA, LayerRecord

_CARRIED, _LEFT_OUT = "carried over as it is", "left out of the output (extra_tensors=false)"
_SKIPPED = "left out by a skip pattern"
_BESIDE = "no part of the text decoder: stays as it is"
_ROUTER = "router: decides on experts, and stays as it is"
_UNKNOWN_STACK = (
    "a stack of matrices, and nothing says whether it is [E, out, in] or [E, in, out]: stays as it is; an attribute "
    "is_transposed of its class would say it"
)


@dataclass
class Coverage:
    """The decision about every layer.

    Attributes:
        schemes: the grid of each layer that will be quantized, by full name.
        layers: one record per Linear and per other matrix of the model.
        head: the output head, if it will be quantized by itself.
        embedding: the input embedding, if it will be quantized.
        tied_head: the output head, where it has the weight of an embedding that will be.
        kept: types of matrices in their own file, where they stay unless they are quantized to another one.
    """

    schemes: dict[str, Scheme]
    layers: list[LayerRecord]
    head: LinearView | None = None
    embedding: LinearView | None = None
    tied_head: LinearView | None = None
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def outside(self) -> list[LinearView]:
        """What will be quantized outside of the blocks, in the order in which it is done."""
        return [view for view in (self.head, self.embedding) if view is not None]

    @property
    def fed(self) -> list[str]:
        """Names of what will be quantized and has inputs that may be: an embedding has none."""
        return [name for name in self.schemes if self.embedding is None or name != self.embedding.name]

    def planned(self) -> list[LayerRecord]:
        """The records with the grids that the layers will have."""
        return [
            replace(layer, type=scheme.type, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym)
            if (scheme := self.schemes.get(layer.name))
            else layer
            for layer in self.layers
        ]


def decide(
    model: Any,
    stack: BlockStack,
    recipe: Recipe,
    extra: Mapping[str, tuple[int, ...]] | None = None,
    kept: Mapping[str, str] | None = None,
) -> Coverage:
    """Match the recipe against the model.

    Args:
        model: names, classes and shapes are looked at.
        stack: its decoder blocks.
        recipe: what to do.
        extra: shapes of the checkpoint's tensors for which the model has no place.
        kept: types of matrices that can stay in their file as they are, by their names.

    Raises:
        RecipeError: a pattern of `layers` or `skip` matches no Linear, nothing is left to quantize, or a layer
            cannot keep within `target_bits`.
    """
    _refuse_shared_weights(model, stack)
    coverage = Coverage({}, [], kept=kept or {})
    deciding = set().union(*(routers(stack.blocks[i], stack.block_name(i)) for i in range(len(stack))))
    mixed = mixed_types(model, stack, recipe, deciding, coverage.kept)
    for index in range(len(stack)):
        for view in stack.linears(index):
            if view.name in deciding:
                _add(coverage, view, None, _ROUTER, index)
            else:
                scheme = recipe.scheme_for(view.name, model.dtype, mixed.get(view.name))
                _add(coverage, view, _fitted(scheme, view, recipe), _SKIPPED, index)
    beside = _beside_the_decoder(model, stack)
    _add_outside(coverage, model, stack, recipe, mixed, beside)
    _check_patterns(coverage, recipe)
    _add_others(coverage, model, stack, deciding, beside)
    # What is in no block comes last.
    coverage.layers.sort(key=lambda layer: len(stack) if layer.block is None else layer.block)
    reason = f"no place in {type(model).__name__}: {_CARRIED if recipe.extra_tensors else _LEFT_OUT}"
    for name, shape in (extra or {}).items():
        coverage.layers.append(LayerRecord(name.removesuffix(".weight"), EXTRA, shape, None, reason))
    return coverage


def _add_outside(
    coverage: Coverage,
    model: Any,
    stack: BlockStack,
    recipe: Recipe,
    mixed: Mapping[str, BlockTypeName],
    beside: set[int],
) -> None:
    """The input embedding where it is to be quantized, the output head, and Linears that are in no block."""
    reader = text_model(model)
    head, embedding = reader.get_output_embeddings(), reader.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    if recipe.wants_embedding:
        _add_embedding(coverage, model, recipe, embedding, mixed)
    wanted = recipe.wants_head or (recipe.mixture is not None and not tied)
    for view in linears_outside(model, stack):
        if view.module is not head:
            _add(coverage, view, None, _BESIDE if id(view.module) in beside else "outside the blocks", None)
        elif wanted:
            kind = mixed.get(view.name)
            scheme = recipe.outside_scheme(view.name, model.dtype, view.shape[1], kind, embedding=False)
            budget = recipe.head_bits is None
            _add(coverage, view, _fitted(scheme, view, recipe, budget=budget), _SKIPPED, None)
            coverage.head = view if view.name in coverage.schemes else None
        elif tied and coverage.embedding is not None:
            coverage.tied_head = view
            _add(
                coverage, view, None, "output head: the embedding's weight, quantized there", None, tied=True
            )
        else:
            reason = "output head" + (", tied to the embedding" if tied else "") + "; head_bits quantizes it"
            _add(coverage, view, None, reason, None, tied=tied)
    if recipe.wants_head and coverage.head is None:
        key = "lm_head=true" if recipe.lm_head else "head_bits"
        raise RecipeError(f"{key} wants an output head that is a Linear and not left out; none was found")


def _add_embedding(
    coverage: Coverage, model: Any, recipe: Recipe, module: nn.Module, mixed: Mapping[str, BlockTypeName]
) -> None:
    if not isinstance(module, nn.Embedding):
        if recipe.embedding_bits is None:
            return  # a mixture takes what there is
        raise RecipeError(
            f"embedding_bits wants an input embedding that is an nn.Embedding; found {type(module).__name__}"
        )
    view = LinearView(name_of(model, module), module)
    kind = mixed.get(view.name)
    scheme = recipe.outside_scheme(view.name, model.dtype, view.shape[1], kind, embedding=True)
    if scheme is None and recipe.embedding_bits is not None:
        raise RecipeError(
            f"embedding_bits quantizes {view.name}, and a skip pattern leaves it out: leave one of them out"
        )
    # A budget is for what the blocks' grid is for.
    _add(coverage, view, _fitted(scheme, view, recipe, budget=False), _SKIPPED, None)
    coverage.embedding = view if view.name in coverage.schemes else None


def check_complete(layers: list[LayerRecord], model: nn.Module) -> None:
    """Every matrix of a model is quantized, or listed with the reason why not: looked at from the model's side.

    Args:
        layers: the coverage table of a finished run.
        model: names and shapes are looked at.

    Raises:
        ModelError: names a matrix that the table passes over.
    """
    told = {layer.name for layer in layers if layer.bits is not None or layer.reason}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name in told or name.removesuffix(".weight") in told:
            continue
        matrices = [f"{name}.{index}" for index in range(len(parameter))] if parameter.ndim == 3 else [name]
        for matrix in matrices:
            if matrix not in told:
                raise ModelError(
                    f"{matrix} was neither quantized nor left out for a reason: nothing is written; please report this"
                )


def _refuse_shared_weights(model: nn.Module, stack: BlockStack) -> None:
    """A weight that two blocks share would be quantized twice, the second time from what the first has left."""
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim > 1 and stack.holds(name):
            other = seen.setdefault(id(parameter), name)
            if other != name:
                raise ModelError(
                    f"{other} and {name} are one weight: blocks with weights of their own are expected; this "
                    "architecture is not supported"
                )


def _fitted(wanted: Scheme | None, view: LinearView, recipe: Recipe, *, budget: bool = True) -> Scheme | None:
    """A grid that the Linear's rows admit, and the budget, where there is one for it."""
    scheme = None if wanted is None else wanted.fitting(view.shape[1])
    if wanted is not None and scheme is None:
        raise RecipeError(
            f"{view.name} has rows of {view.shape[1]} weights, and types of GGUF files want a multiple of 32: leave it "
            f"out (skip: [{view.name}]), or give it a grid without a type in layers"
        )
    if scheme is None or recipe.target_bits is None or not budget:
        return scheme
    permuted = recipe.permutes(scheme, view.shape[1])
    return scheme_within(recipe.target_bits, scheme, view.name, view.shape, permuted=permuted)


def _add_others(
    coverage: Coverage, model: Any, stack: BlockStack, deciding: set[str], beside: set[int]
) -> None:
    """Embeddings, and every other matrix that no Linear holds: a router, a recurrence, a convolution."""
    linears = {f"{layer.name}.weight" for layer in coverage.layers}
    stacks = stacks_in(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name in linears or name in stacks:
            continue  # a quantized embedding is among the Linears
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        listed = owner if own_name == "weight" else name
        record = LayerRecord(
            listed,
            type(module).__name__,
            tuple(parameter.shape),
            stack.index_of(name),
            _ROUTER if listed in deciding else _reason_no_linear(module, own_name, beside),
        )
        coverage.layers.append(record)


def _beside_the_decoder(model: Any, stack: BlockStack) -> set[int]:
    """Towers for pictures or sound, and what joins them to the text decoder: the modules by identity."""
    reader = text_model(model)
    get_decoder = getattr(reader, "get_decoder", None)
    decoder = get_decoder() if get_decoder is not None else None
    if not isinstance(decoder, nn.Module):
        return set()
    inside = {id(module) for module in decoder.modules()}
    if id(stack.blocks[0]) not in inside:
        return set()
    # What holds the decoder, and tensors of its own, is as much the decoder's as the towers'.
    parents = {
        id(module) for module in model.modules() if any(child is decoder for child in module.modules())
    }
    ends = {id(reader.get_output_embeddings()), id(reader.get_input_embeddings())}
    return {id(module) for module in model.modules()} - inside - parents - ends


def _reason_no_linear(module: nn.Module, parameter: str, beside: set[int]) -> str:
    if id(module) in beside:
        return _BESIDE
    if isinstance(module, nn.Embedding):
        return "embedding"
    if parameter in stacked_in(module):
        return _UNKNOWN_STACK
    return "no Linear: stays as it is"


def _add(
    coverage: Coverage,
    view: LinearView,
    scheme: Scheme | None,
    reason: str,
    block: int | None,
    *,
    tied: bool = False,
) -> None:
    record = LayerRecord(view.name, type(view.module).__name__, view.shape, block, reason, tied)
    if scheme is not None and scheme.type is not None and coverage.kept.get(view.name) == scheme.type:
        bits = scheme.paper_bits(view.shape[1])
        record = replace(
            record,
            reason=f"{scheme.type} in the file already: kept as it is",
            type=scheme.type,
            bits_per_weight=bits,
            paper_bits=bits,
            outliers=0.0,
        )
    elif scheme is not None:
        coverage.schemes[view.name], record = scheme, replace(record, reason="")
    coverage.layers.append(record)


def _check_patterns(coverage: Coverage, recipe: Recipe) -> None:
    names = [layer.name for layer in coverage.layers]
    for pattern in (*recipe.layers, *recipe.skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names[:4])
            raise RecipeError(f"the pattern {pattern!r} matches no Linear; names look like {some}")
    if not coverage.schemes and not any(layer.name in coverage.kept for layer in coverage.layers):
        raise RecipeError("every Linear is left out: at least one is expected; narrow the skip patterns")
