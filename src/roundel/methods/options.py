"""The knobs of methods, with the defaults that every recipe starts from."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Of rounding the columns (order.py).
OrderName = Literal["identity", "act_order", "group_aware", "spearman"]

# Of the divisors' logarithms, in units of 1 / (2^bits sqrt(iters)). Adam's steps are independent of the gradient's
# size, and with minibatches they add up like a random walk, hence the root.
_DIVISION_STEP = 0.8


class TuningOptions(BaseModel):
    """How the parameters of a block are tuned. Recipes inherit these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    iters: int = Field(default=200, ge=0, le=1_000_000)
    """Optimizer steps per block; 0 keeps the start."""

    lr: float | None = Field(default=None, gt=0, le=10)
    """Step size of the rounding offsets (signround, autoround, and `offsets`), in units of one code. Left out:
    1 / iters, and 2 / iters at 3 bits or fewer with 1000 or more iterations, so that an offset can travel half a
    code (a whole one) in total."""

    minmax_lr: float | None = Field(default=None, gt=0, le=10)
    """Step size of the range factors (flexround, lrq: of the logarithm of the scale), as a share of the range. Left
    out: 0.2 / iters from a searched start, 1 / iters from a min/max start; flexround, lrq: as `division_lr`."""

    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How both step sizes fall from their start to 0."""

    loss: Literal["balanced", "relative", "mse"] = "balanced"
    """What is minimised. mse: the papers' mean squared error, ruled by the few tokens with massive activations.
    relative: each token's squared error over its own squared output, in which those tokens hardly count. balanced:
    half of either."""

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
    """Feed a block the output of the quantized blocks before it; off: that of the unquantized ones, so that blocks
    do not depend on each other. Also for gptq and spqr, whose papers feed the former."""

    min_tokens: float = Field(default=0.25, ge=0)
    """Calibration tokens per input channel that a Linear must have seen; with fewer (an expert that the router hardly
    ever chose) it is rounded to nearest, not by error feedback, not tuned, and the coverage table says so."""

    keep: Literal["last", "best-fixed", "best-minibatch"] = "last"
    """Which iterate survives. last: the final one. best-fixed: the one with the lowest loss on the fixed
    held-out samples, judged every `judge_every` steps. best-minibatch: the lowest loss of a training batch,
    which compares different batches (the reference's rule). Whatever is kept competes with the start on the
    held-out samples and loses to it if it is worse."""

    holdout: int = Field(default=8, ge=1)
    """Calibration samples that are never trained on, for judging; at most a quarter of all samples."""

    judge_every: int = Field(default=20, ge=1)
    """Steps between two judgements with `keep: best-fixed`."""

    input_mixing: float = Field(default=0.0, ge=0, lt=1)
    """While training, replace this share of a block's inputs, element by element and at random, by those of the
    unquantized model (QDrop, arXiv 2203.05740). 0.5 in FlexRound's vision experiments."""

    amp: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type of the block's forward and backward pass. auto: bfloat16 where the device multiplies it
    in hardware, else float32. Parameters, rounding and losses are fp32 always; a block that is not finite in half
    precision is done again in float32."""

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


class DivisionOptions(BaseModel):
    """What FlexRound and LRQ learn. Recipes inherit these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    offsets: bool = False
    """Tune SignRound's additive offsets beside the division, which cannot move weights near zero. Where `lr` and
    `division_lr` are left out, both are half of what they are alone."""

    rank: int | float = Field(default=0.25, gt=0)
    """lrq: rank of the division. A whole number, or a share of the smaller side of each weight; 0.25 is the paper's
    1024 of 4096. At most full rank."""

    division_lr: float | None = Field(default=None, gt=0, le=10)
    """Step size of the logarithm of the divisors. Left out: 0.8 / (2^bits sqrt(iters)), which fits all models and
    widths that were tried (docs/results.md): the farthest codes move by the same number of codes at every width."""

    def resolved_division_lr(self, bits: int, iters: int) -> float:
        """The divisors' step size for a layer of `bits` bits."""
        if self.division_lr is not None:
            return self.division_lr
        return _DIVISION_STEP / (2**bits * math.sqrt(max(iters, 1)))

    def resolved_rank(self, shape: tuple[int, int]) -> int:
        """The rank for a weight of this shape, between 1 and full."""
        full = min(shape)
        wanted = self.rank if isinstance(self.rank, int) else round(self.rank * full)
        return max(1, min(wanted, full))

    @field_validator("rank")
    @classmethod
    def _number_or_share(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value > 1:
            raise ValueError("must be a whole number, or a share between 0 and 1")
        return value


class HessianOptions(BaseModel):
    """How GPTQ rounds, and what SpQR keeps beside the grid. Recipes inherit these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    damping: float = Field(default=0.01, ge=0, le=100)
    """Added to the Hessian's diagonal, as a share of its mean. Raised tenfold, with a word, wherever the
    factorization fails."""

    order: OrderName = "group_aware"
    """Order in which columns are rounded. group_aware: the most important first, groups kept together.
    act_order and spearman: across groups; unless `static_groups`, codes are then stored in that order."""

    static_groups: bool = False
    """Fit all grids before rounding, on the groups of the original columns, so that no order permutes codes.
    Off: a group's grid is fitted when its turn comes, on weights that hold the compensation so far."""

    true_sequential: bool = False
    """Inside a block, give each Linear inputs that passed the block's quantized Linears before it: one more
    pass over the calibration data for each distinct input. Off: one pass for the whole block."""

    block_loss: bool = False
    """Run the unquantized model beside the quantized one and record how far the output of every block is off: one
    more pass over the calibration data."""

    outlier_threshold: float | None = Field(default=None, gt=0)
    """Keep a weight in 16 bits if that lowers the error by more than this times the layer's mean of
    Var(W_j) / d_j^2. Higher means fewer outliers."""

    outliers: float | None = Field(default=None, ge=0, le=0.5)
    """Keep this share of each Linear's weights in 16 bits, those that matter most; 0.005 or 0.5%."""

    target_bits: float | None = Field(default=None, gt=0, le=32)
    """Keep as many outliers as fit into so many stored bits per weight, everything of a Linear counted."""

    simplified_outliers: bool = False
    """Judge a weight by its own error alone, not by what its group gains without it. Faster, worse."""

    @field_validator("outliers", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip().removesuffix("%")) / 100
        return value
