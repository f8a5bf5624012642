"""What several runs on one model have in common; the first that needs it finds it out."""

from collections.abc import Callable

from roundel.calibration.gather import Calibration
from roundel.calibration.options import CalibrationOptions
from roundel.model.source import SourceModel, fingerprint


class Common:
    """Findings about one model and its data."""

    def __init__(self) -> None:
        self._fingerprints: dict[str, str] = {}
        self._calibration: dict[str, Calibration] = {}

    def fingerprint(self, source: SourceModel) -> str:
        """Of the model's weights: it takes a pass over the whole checkpoint.

        Some formats want what came from a GGUF file in another type than others do.
        """
        dtype = str(source.model.dtype)
        if dtype not in self._fingerprints:
            self._fingerprints[dtype] = fingerprint(source.model, source.storage, source.extra)
        return self._fingerprints[dtype]

    def calibration(self, options: CalibrationOptions, read: Callable[[], Calibration]) -> Calibration:
        """Tokens, by the options that decide them."""
        key = str({name: getattr(options, name) for name in CalibrationOptions.model_fields})
        if key not in self._calibration:
            self._calibration[key] = read()
        return self._calibration[key]
