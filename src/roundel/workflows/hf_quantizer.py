"""transformers' plug-in: `from_pretrained` of a folder in Roundel's own container, once Roundel is imported.

    import roundel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("smaller")

transformers asks a quantizer, whom it finds by `quant_method` in config.json, at every step of the way:

    which file        `roundel.safetensors`, which it does not look for by itself
    before loading    packed modules in the place of dense ones, without weights (formats/packed_loading.py)
    while loading     the stored parts of a weight become those of its packed module
    after loading     quantized activations, as the folder has them, and a `save_pretrained` of its own

WITHOUT the import transformers says that there is no `model.safetensors`. It knows no entry points: an unknown
`quant_method` is a warning, and what it does not find in a file gets random values. So no file that it would take ever
holds packed weights; that holds for `save_pretrained`, too (formats/packed_saving.py).

The quantizer has to be registered after transformers is imported, which takes seconds, and `import roundel` must not
take them. It watches for the import of transformers' registry instead (system/when_imported.py), whichever comes first.
Rejected: importing transformers from `roundel/__init__.py`, for its time; a `.pth` file that every Python of the
environment would run; asking the user to call `roundel.register()`, which is what is forgotten. For the same reason
this file, which is imported in the middle of transformers' own import, imports nothing but the classes that it extends.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from roundel.errors import ModelError

if TYPE_CHECKING:
    from roundel.formats.packed_loading import PackedLoading

_METHOD = "roundel"


@register_quantization_config(_METHOD)
class RoundelConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says of a folder in Roundel's own container; grids are in the header of the weight files.

    Args:
        weights: the weight file, or the index of several.
        activations: whether activations are quantized, as roundel_activations.json says.
    """

    def __init__(
        self,
        weights: str = "roundel.safetensors",
        activations: bool = False,
        quant_method: str = _METHOD,
        **others: Any,
    ) -> None:
        if others:
            raise ModelError(
                f"quantization_config of a roundel model has {', '.join(sorted(others))}, which this roundel does not "
                "know: a newer one is expected, or the config.json that came with the weights"
            )
        self.quant_method = quant_method
        self.weights, self.activations = weights, activations


@register_quantizer(_METHOD)
class RoundelQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers asks on the way from a folder to a model of packed modules."""

    quantization_config: RoundelConfig
    _loading: "PackedLoading"

    def __init__(self, quantization_config: RoundelConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.pre_quantized = True  # also where the config came as an argument: older folders do not have it

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the weight file: it is looked for after this."""
        config.transformers_weights = self.quantization_config.weights
        return config

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Of a stored tensor: parts of packed weights keep theirs."""
        from roundel.formats.packed_loading import is_packing

        return None if is_packing(converter) else super().get_new_dtype(converter, param, dtype)

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **others: Any
    ) -> Any:
        from roundel.formats.packed_loading import PackedLoading

        if not checkpoint_files:
            raise ModelError(
                "a model of roundel's own container is opened without a folder: its weights come from its files; "
                "leave state_dict out"
            )
        self._loading = PackedLoading([Path(file) for file in checkpoint_files])
        self._loading.prepare(model)
        return model

    def get_weight_conversions(self) -> list[Any]:
        """The stored parts of a weight as those of a packed module."""
        return self._loading.conversions()

    def _process_model_after_weight_loading(self, model: Any, **others: Any) -> Any:
        self._loading.finish(model, self.quantization_config.activations)
        del self._loading
        return model

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        """Asked by transformers' own `save_pretrained`, which the model's own stands in for."""
        raise ModelError(
            "transformers' own save_pretrained would write packed weights into a file that it opens with random "
            "values where Roundel is not imported: model.save_pretrained(...) of the model itself is expected"
        )

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        raise ModelError(
            "packed modules are not turned into dense ones in their place: open the folder with "
            "roundel.load(FOLDER, packed=False)"
        )

    def is_serializable(self) -> bool:
        """By the model's own `save_pretrained`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Not the integers, and nothing on top of them."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Products are operators that torch.compile traces through."""
        return True
