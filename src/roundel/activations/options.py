"""The knobs of activations. Recipes inherit these keys."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from roundel.activations.scheme import Activations, ActivationScheme


class ActivationOptions(BaseModel):
    """What flows through the quantized model: all in full precision unless said otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    act_bits: int | None = Field(default=None, ge=2, le=8)
    """Quantize the inputs of all quantized Linears to so many bits, in tuning as in service."""

    act_sym: bool = False
    """Symmetric grid for the inputs: no zero point."""

    act_scale: Literal["token", "static"] = "token"
    """token: every token gets its own scale when it comes by. static: one scale per Linear, from the calibration
    data."""

    act_range: Literal["minmax", "percentile", "mse"] = "minmax"
    """What a static scale spans: all values seen, all but the farthest (`act_percentile`), or the range with the
    least squared error."""

    act_percentile: float = Field(default=99.99, gt=50, lt=100)
    """Percentage of the values that `act_range: percentile` keeps inside, on either side."""

    smooth: float | None = Field(default=None, ge=0, le=1)
    """SmoothQuant: move the size of input channels into the weights before anything is quantized, folded into the
    norm before. The exponent of the activations; 0.5 shares evenly, 1 moves everything."""

    kv_bits: int | None = Field(default=None, ge=2, le=8)
    """Quantize keys (after the rotary embedding) and values to so many bits, with a scale for each token and head."""

    kv_sym: bool = False
    """Symmetric grid for keys and values."""

    @property
    def activations(self) -> Activations:
        """The grids of inputs, keys and values."""
        inputs = kv = None
        if self.act_bits is not None:
            inputs = ActivationScheme(self.act_bits, self.act_sym, static=self.act_scale == "static")
        if self.kv_bits is not None:
            kv = ActivationScheme(self.kv_bits, self.kv_sym, static=False)
        return Activations(inputs, kv)

    @property
    def static_activations(self) -> bool:
        """Whether ranges come from calibration data."""
        return self.act_bits is not None and self.act_scale == "static"
