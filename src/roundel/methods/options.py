"""The knobs of learned methods, with the defaults that every recipe starts from."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TuningOptions(BaseModel):
    """How the parameters of a block are tuned. Recipes inherit these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    iters: int = Field(default=200, ge=0, le=1_000_000)
    """Optimizer steps per block; 0 keeps the start."""

    lr: float | None = Field(default=None, gt=0, le=10)
    """Step size of the rounding offsets, in units of one code. Left out: 1 / iters, and 2 / iters at 3 bits
    or fewer with 1000 or more iterations, so that an offset can travel half a code (a whole one) in total."""

    minmax_lr: float | None = Field(default=None, gt=0, le=10)
    """Step size of the range factors, as a share of the range. Left out: 0.2 / iters from a searched start,
    1 / iters from a min/max start."""

    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How both step sizes fall from their start to 0."""

    loss: Literal["relative", "mse"] = "relative"
    """What is minimised. relative: each token's squared error over its own squared output. mse: the papers'
    mean squared error, ruled by tokens with massive activations."""

    optimizer: Literal["signsgd", "adamw"] = "signsgd"
    """signsgd: the sign of the gradient, no momentum. adamw: AdamW without weight decay."""

    batch_size: int = Field(default=8, ge=1)
    """Calibration samples per forward pass."""

    gradient_accumulate_steps: int = Field(default=1, ge=1)
    """Batches per optimizer step."""

    enable_minmax_tuning: bool = True
    """Tune a factor on either end of each group's range (alpha and beta of the paper)."""

    minmax_limit: float = Field(default=2.0, ge=1, le=4)
    """Largest range factor; they start at 1 and never fall below 0. 1 lets a range only shrink."""

    use_quant_input: bool = True
    """Feed a block the output of the quantized blocks before it; off: that of the unquantized ones."""

    keep: Literal["last", "best-fixed", "best-minibatch"] = "last"
    """Which iterate survives. last: the final one. best-fixed: the one with the lowest loss on the fixed
    held-out samples, judged every `judge_every` steps. best-minibatch: the lowest loss of a training batch,
    which compares different batches (the reference's rule). Whatever is kept competes with the start on the
    held-out samples and loses to it if it is worse."""

    holdout: int = Field(default=8, ge=1)
    """Calibration samples that are never trained on, for judging; at most a quarter of all samples."""

    judge_every: int = Field(default=20, ge=1)
    """Steps between two judgements with `keep: best-fixed`."""

    amp: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type of the block's forward and backward pass. auto: bfloat16 where the device multiplies it
    in hardware, else float32. Parameters, rounding and losses are fp32 always."""

    def resolved_lr(self, bits: int) -> float:
        """The offsets' step size for a layer of `bits` bits."""
        if self.lr is not None:
            return self.lr
        travel = 2.0 if bits <= 3 and self.iters >= 1000 else 1.0
        return travel / max(self.iters, 1)

    def resolved_minmax_lr(self, searched: bool) -> float:
        """The range factors' step size, given whether the start was searched."""
        if self.minmax_lr is not None:
            return self.minmax_lr
        return (0.2 if searched else 1.0) / max(self.iters, 1)
