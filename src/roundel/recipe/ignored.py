"""Which keys of a recipe its method would ignore: they are refused, not passed over."""

from typing import TypeGuard

from roundel.methods.options import DivisionOptions, HessianOptions, TuningOptions
from roundel.methods.registry import METHODS

# Keys of tuning that matter without it too, where the model is run for statistics of its inputs.
RUNNING = {"batch_size", "amp"}
# The same for error feedback.
_GUIDED = {"use_quant_input", "min_tokens"}
_TUNING = set(TuningOptions.model_fields) - RUNNING
OUTLIER_RULES = ("outlier_threshold", "outliers", "target_bits")


def ignored_keys(method: str, start: str | None) -> set[str]:
    """Keys of options that mean nothing to a method with this start."""
    facts = METHODS[method]
    ignored = set() if facts.learned else set(_TUNING)
    if facts.feedback:
        ignored -= _GUIDED
    ignored |= {"minmax_limit"} if facts.divides else set(DivisionOptions.model_fields)
    if facts.divisor == "full":
        ignored |= {"rank"}
    stages = [facts]
    if is_feedback(start):
        stages.append(METHODS[start])
    if not any(stage.outliers for stage in stages):
        ignored |= {*OUTLIER_RULES, "simplified_outliers"}
    if not any(stage.feedback for stage in stages):
        ignored |= set(HessianOptions.model_fields)
    return ignored


def is_feedback(start: object) -> TypeGuard[str]:
    """Whether a start is one of the methods with error feedback."""
    return isinstance(start, str) and start in METHODS and METHODS[start].feedback


def describe(method: str, ignored: set[str]) -> str:
    """The method, and which of its properties makes it ignore a key."""
    if method == "rtn" and ignored & _TUNING:
        return "method rtn, which tunes nothing,"
    if METHODS[method].learned and ignored & set(HessianOptions.model_fields):
        return f"method {method} from a start other than gptq or spqr"
    return f"method {method}"
