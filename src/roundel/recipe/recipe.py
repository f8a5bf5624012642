"""The recipe: what to do with a model, as data.

One flat, frozen, validated object; YAML files of the same keys ship in `recipes/`. A method brings its own
defaults; whatever a recipe sets wins over them. Unknown keys, and keys that the method would ignore, are
errors.
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from roundel.activations.options import ActivationOptions
from roundel.calibration.options import CalibrationOptions
from roundel.errors import RecipeError
from roundel.grid.block_types import BlockTypeName, type_of_bits
from roundel.grid.scheme import Scheme, type_settings
from roundel.methods.options import DivisionOptions, HessianOptions, TuningOptions
from roundel.methods.registry import METHODS, Method, MethodName
from roundel.recipe.explain import explain
from roundel.recipe.ignored import OUTLIER_RULES, RUNNING, describe, ignored_keys, is_feedback
from roundel.recipe.ladder import LEARNED_ON_CPU, ROUNDED_ON_CPU
from roundel.recipe.loading import load_settings
from roundel.recipe.mixtures import MixtureName, base_of

if TYPE_CHECKING:
    import torch

FormatName = Literal[
    "compressed-tensors", "roundel", "gptq", "gptq_v2", "awq", "auto-round", "spqr", "gguf", "dense"
]

# Added to the name of a recipe that is no longer what its file says.
_CHANGED = " (changed)"


class Recipe(Scheme, TuningOptions, DivisionOptions, HessianOptions, ActivationOptions, CalibrationOptions):
    """Everything that decides the result. Immutable; derive variants with `with_settings`."""

    name: str = "custom"
    """What reports call it."""

    description: str = ""
    """One sentence for `roundel recipes`."""

    method: MethodName = "autoround"
    """rtn: round to nearest. gptq: rounding with error feedback. spqr: the same with outliers, on a two-level
    grid. signround: tuned offsets. autoround: tuned offsets and ranges. flexround: tuned element-wise division.
    lrq: the same of low rank."""

    start: Literal["minmax", "search", "gptq", "spqr"] = "search"
    """The grid before tuning, or the grids of gptq and spqr: spanning the weights (minmax), or searched per
    group with the inputs' second moments as weights. Without tuning (`rtn`) the search needs calibration data
    too. Learned methods may also start from the integers of gptq or spqr on searched grids."""

    scale_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"  # type: ignore[assignment]
    """Type in which scales are stored, and to which they are rounded inside every computation. auto: the
    model's own type where it has 16 bits, so that every client multiplies the very scales that were tuned;
    else float16, and always on two levels."""

    format: FormatName = "compressed-tensors"
    """The container: compressed-tensors (packed integers for transformers and vLLM), roundel (everything that
    Roundel can make, read by Roundel), the layouts of GPTQ (gptq_v2: zero points as they are), AWQ and AutoRound for
    clients that read those, spqr (3 bit, for transformers with a CUDA device), gguf (one file in the
    types of `type`, for llama.cpp), or dense weights."""

    mixture: MixtureName | None = None
    """One of llama.cpp's rules (q4_k_m, q3_k_m, ...) that say which matrix gets which type of GGUF files, the embedding
    and the head among them; `layers`, `embedding_bits` and `head_bits` win over it."""

    layers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Overrides by layer name pattern, the last match wins: {"*.down_proj": {"bits": 8}}. Keys: those of the
    grid (bits, group_size, sym, scale_dtype, ...)."""

    skip: tuple[str, ...] = ()
    """Patterns of layer names that stay as they are."""

    lm_head: bool = False
    """Quantize the output head too, on the grid of the blocks; a head tied to the embedding is untied. Rounded with
    error feedback by every method but rtn."""

    head_bits: Literal[4, 5, 6, 8] | None = None
    """Quantize the output head too, with so many bits; a head tied to the embedding is untied."""

    embedding_bits: Literal[4, 5, 6, 8] | None = None
    """Quantize the input embedding, with so many bits and else on the grid of the blocks; a head that is tied to it
    stays so. Done when all blocks are: with error feedback, as a head is, where the two are tied, else to nearest. Left
    out: it stays as it is."""

    extra_tensors: bool = True
    """Carry tensors of the checkpoint for which the model's class has no place into the output as they are: layers that
    predict several tokens at once, value heads. Other clients want them. Off: they are left out."""

    low_gpu_mem_usage: bool = False
    """Keep activations in main memory and move one batch at a time to the device."""

    @model_validator(mode="before")
    @classmethod
    def _fill_method_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        method, start = data.get("method", "autoround"), data.get("start")
        if not isinstance(method, str) or method not in METHODS:
            return data  # refused as any other wrong value
        ignored = set(data) & ignored_keys(method, start)
        if ignored:
            raise ValueError(
                f"{describe(method, ignored)} would ignore {', '.join(sorted(ignored))}: leave it out"
            )
        mixture = data.get("mixture")
        if isinstance(mixture, str) and mixture in get_args(MixtureName):
            wanted = base_of(mixture).type
            if data.get("type", wanted) != wanted:
                raise ValueError(f"mixture {mixture} says type {wanted}: leave type out, or mixture")
            data = {**data, "type": wanted}
        defaults = METHODS[method].defaults
        if data.get("type") is not None:
            # A method's own grid gives way to the type, and a type is for files that have it.
            defaults = {key: value for key, value in defaults.items() if key not in Scheme.model_fields}
            defaults |= {"format": "gguf"}
        return {**defaults, **data}

    @field_validator("layers")
    @classmethod
    def _known_overrides(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for pattern, override in value.items():
            unknown = sorted(set(override) - set(Scheme.model_fields))
            if unknown:
                known = ", ".join(Scheme.model_fields)
                raise ValueError(f"{pattern} overrides {', '.join(unknown)}; a layer may override {known}")
        return value

    @model_validator(mode="after")
    def _valid_layers(self) -> Self:
        for pattern, override in self.layers.items():
            try:
                self._scheme_with(override, bfloat16=False)
            except ValidationError as error:
                raise ValueError(
                    f"the override of {pattern}: {explain(error, type(self).model_fields)}"
                ) from error
        return self

    @model_validator(mode="after")
    def _start_suits_the_method(self) -> Self:
        if is_feedback(self.start):
            if not self.tuned:
                raise ValueError(
                    f"method {self.method} cannot start from {self.start}; minmax or search is expected"
                )
            if self._permutes:
                raise ValueError(
                    f"tuning cannot start from codes in the order {self.order}; set order=group_aware or "
                    "static_groups=true"
                )
        if self.enable_minmax_tuning and not self._method.tunes_ranges:
            raise ValueError(f"{self.method} tunes no ranges; method autoround does")
        unmoved = self.two_level or not (self.round_zero or self.minima)
        if self.tuned and self.enable_minmax_tuning and unmoved:
            raise ValueError(
                "ranges of two-level grids and of real zero points cannot be tuned: set enable_minmax_tuning=false"
            )
        return self

    @model_validator(mode="after")
    def _one_rule_for_outliers(self) -> Self:
        rules = [key for key in OUTLIER_RULES if getattr(self, key) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} each decide the number of outliers: give one of them")
        if self.type is not None and rules:
            raise ValueError(
                f"a type of GGUF files has no place for outliers: leave {rules[0]} out, or the type"
            )
        if self.simplified_outliers and not rules:
            raise ValueError(f"simplified_outliers has no effect without {', '.join(OUTLIER_RULES)}")
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if not self.sym and "sym_range" in self.model_fields_set and not self.layers:
            raise ValueError("sym_range has no effect on an asymmetric grid; set sym=true")
        reading: set[str] = {*CalibrationOptions.model_fields, *RUNNING, "low_gpu_mem_usage"}
        unused = sorted(self.model_fields_set & reading)
        if unused and not self.needs_calibration:
            raise ValueError(
                f"method rtn from a min/max start reads no calibration data and would ignore {', '.join(unused)}; "
                "set start=search or leave them out"
            )
        if self.minmax_lr is not None and not self.enable_minmax_tuning:
            raise ValueError("minmax_lr has no effect with enable_minmax_tuning=false")
        if self.divides and not self.offsets and self.lr is not None:
            raise ValueError(
                f"lr, the offsets' step size, has no effect on {self.method} without offsets=true; "
                "division_lr is that of the division"
            )
        if self.input_mixing and not self.use_quant_input:
            raise ValueError(
                "input_mixing has no effect with use_quant_input=false: all inputs are unquantized then"
            )
        if self.block_loss and self.tuned:
            raise ValueError(
                "block_loss has no effect: learned methods record the loss of every block anyway"
            )
        if self.block_loss and not self.use_quant_input:
            raise ValueError(
                "block_loss compares the quantized blocks' outputs, which use_quant_input=false never computes"
            )
        return self

    @model_validator(mode="after")
    def _activations_fit_together(self) -> Self:
        needs = {
            "act_sym": ("act_bits", self.act_bits is not None),
            "act_scale": ("act_bits", self.act_bits is not None),
            "act_range": ("act_scale=static", self.static_activations),
            "act_percentile": ("act_range=percentile", self.act_range == "percentile"),
            "kv_sym": ("kv_bits", self.kv_bits is not None),
        }
        for key, (condition, holds) in needs.items():
            if key in self.model_fields_set and not holds:
                raise ValueError(f"{key} has no effect without {condition}")
        return self

    @classmethod
    def create(cls, **settings: Any) -> "Recipe":
        """Build a recipe, with Roundel's own error for bad keys and values.

        Raises:
            RecipeError: names the key, what was found and what is expected.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise RecipeError(explain(error, cls.model_fields)) from error

    @classmethod
    def load(cls, name_or_file: str | Path) -> "Recipe":
        """A shipped recipe by name, or a YAML file.

        Raises:
            RecipeError: no such recipe, or not valid.
        """
        return cls.create(**load_settings(name_or_file))

    def with_settings(self, **changes: Any) -> "Recipe":
        """The same recipe with some keys changed; a changed method brings its own defaults."""
        kept = self.settings()
        if changes.get("method", self.method) != self.method:
            # The old method's values mean nothing to the new one.
            fresh = {*TuningOptions.model_fields, *HessianOptions.model_fields}
            fresh |= {*DivisionOptions.model_fields, *CalibrationOptions.model_fields}
            fresh |= {"start", *METHODS[self.method].defaults}
            kept = {key: value for key, value in kept.items() if key not in fresh}
        if changes and "name" not in changes:
            kept["name"] = f"{self.name.removesuffix(_CHANGED)}{_CHANGED}"
            kept.pop("description", None)
        return Recipe.create(**{**kept, **changes})

    def on_cpu(self, given: Collection[str]) -> "Recipe":
        """The same, with as much work as suits a CPU where nothing says how much.

        Args:
            given: keys that say it.
        """
        idle = ignored_keys(self.method, self.start)
        suited = LEARNED_ON_CPU if self.tuned else ROUNDED_ON_CPU
        changes = {key: value for key, value in suited.items() if key not in {*given, *idle}}
        if not self.needs_calibration or not changes:
            return self
        return self.with_settings(name=self.name, **changes)

    def with_little_device_memory(self) -> "Recipe":
        """The same, with activations in main memory and, where it is tuned, gradients of one sample at a time."""
        changes: dict[str, Any] = {"low_gpu_mem_usage": True, "batch_size": 1}
        if self.tuned:
            changes["gradient_accumulate_steps"] = self.batch_size * self.gradient_accumulate_steps
        return self.with_settings(**changes)

    def settings(self) -> dict[str, Any]:
        """The keys that were set (by the recipe or by its method), for writing it down."""
        data = self.model_dump(mode="json", exclude_unset=True)
        left = ignored_keys(self.method, self.start)
        if self.type is not None:
            left |= set(type_settings(self.type))  # it says them
        if self.mixture is not None:
            left.add("type")
        return {key: value for key, value in data.items() if key not in left}

    def scheme_for(
        self, layer: str, model_dtype: "torch.dtype", mixed: BlockTypeName | None = None
    ) -> Scheme | None:
        """The grid of a layer in a block, by its full name, in a model of some type; None where it is left out.

        `mixed` is the type that the mixture gives it.
        """
        return self._scheme_of(layer, model_dtype, {} if mixed is None else {"type": mixed})

    def _scheme_of(self, layer: str, model_dtype: "torch.dtype", changes: Mapping[str, Any]) -> Scheme | None:
        """With some changes that give way to `layers`."""
        if any(fnmatchcase(layer, pattern) for pattern in self.skip):
            return None
        override = dict(changes)
        for pattern, own in self.layers.items():
            if fnmatchcase(layer, pattern):
                override.update(own)
        return self._scheme_with(override, bfloat16=str(model_dtype) == "torch.bfloat16")

    @property
    def wants_head(self) -> bool:
        """Whether the head is quantized by itself, tied or not."""
        return self.lm_head or self.head_bits is not None

    @property
    def wants_embedding(self) -> bool:
        """Whether the embedding is quantized."""
        return self.embedding_bits is not None or self.mixture is not None

    def outside_scheme(
        self,
        layer: str,
        model_dtype: "torch.dtype",
        in_features: int,
        mixed: BlockTypeName | None = None,
        *,
        embedding: bool,
    ) -> Scheme | None:
        """The grid of the head or the embedding, or of what is both; None where it is left out.

        Args:
            layer: full name.
            model_dtype: type of the model.
            in_features: weights of a row.
            mixed: the type that the mixture gives it.
            embedding: whether it is the embedding.
        """
        bits = self.embedding_bits if embedding else self.head_bits
        changes: dict[str, Any] = {}
        if bits is not None:
            changes = {"bits": bits} if self.type is None else {"type": type_of_bits(bits, in_features)}
        elif mixed is not None:
            changes = {"type": mixed}
        return self._scheme_of(layer, model_dtype, changes)

    def leaves_to_mixture(self, layer: str, *, head: bool = False, embedding: bool = False) -> bool:
        """Whether nothing else in the recipe says what becomes of a layer."""
        said = (self.embedding_bits is not None) if embedding else head and self.head_bits is not None
        typed = (pattern for pattern, override in self.layers.items() if "type" in override)
        return not said and not any(fnmatchcase(layer, pattern) for pattern in (*self.skip, *typed))

    def _scheme_with(self, override: Mapping[str, Any], *, bfloat16: bool) -> Scheme:
        base = {key: getattr(self, key) for key in Scheme.model_fields}
        if override.get("type", self.type) != self.type:
            # One type in place of another, or of none, or none: what the old one fixed is not said any more.
            fixed = type_settings(self.type or override["type"])
            base = {key: value for key, value in base.items() if key not in fixed}
        merged = {"scale_dtype": self.scale_dtype, **base, **override}
        if merged["scale_dtype"] == "auto":
            two_level = merged.get("scale_bits") is not None or merged.get("zero_bits") is not None
            merged["scale_dtype"] = "bfloat16" if bfloat16 and not two_level else "float16"
        return Scheme(**merged)

    @property
    def needs_calibration(self) -> bool:
        """Whether anything depends on calibration data."""
        reading = self.static_activations or self.smooth is not None
        return self.method != "rtn" or self.start == "search" or reading

    @property
    def _method(self) -> Method:
        return METHODS[self.method]

    @property
    def tuned(self) -> bool:
        """Whether parameters are learned."""
        return self._method.learned

    @property
    def divides(self) -> bool:
        """Whether an element-wise division is learned."""
        return self._method.divides

    @property
    def hessian_guided(self) -> bool:
        """Whether rounding feeds errors back (GPTQ, SpQR), as the method or as its start."""
        return self._method.feedback or is_feedback(self.start)

    @property
    def keeps_outliers(self) -> bool:
        """Whether some weights may be kept beside the grid."""
        return any(getattr(self, key) is not None for key in OUTLIER_RULES)

    @property
    def grid_fit(self) -> str:
        """How grids are fitted: `minmax` or `search`."""
        return "minmax" if self.start == "minmax" else "search"

    @property
    def needs_original_stream(self) -> bool:
        """Whether the unquantized model's activations are needed."""
        unquantized = self.hessian_guided and not self.use_quant_input
        return self.method == "rtn" or self.tuned or self.block_loss or unquantized

    @property
    def needs_quantized_stream(self) -> bool:
        """Whether the activations of the blocks quantized so far are needed."""
        return (self.hessian_guided or self.tuned) and self.use_quant_input

    @property
    def _permutes(self) -> bool:
        return self.order in ("act_order", "spearman") and not self.static_groups

    def permutes(self, scheme: Scheme, in_features: int) -> bool:
        """Whether a layer's codes come out in another order than its input channels."""
        return self.hessian_guided and self._permutes and scheme.groups(in_features) > 1
