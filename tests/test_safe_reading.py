"""Nothing that a user hands over is run: what is read holds data only."""

import re
from pathlib import Path

import roundel


def test_nothing_unpickles_more_than_tensors() -> None:
    """Every torch.load says weights_only, and pickle itself gives nothing but the name of its error."""
    for path in (Path(roundel.__file__).parent).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text)), path
        imports = re.findall(
            r"^\s*(?:import|from) .*(?:pickle|dill|joblib|shelve|marshal).*$", text, re.MULTILINE
        )
        assert set(imports) <= {"from pickle import UnpicklingError"}, path
        assert "yaml.load(" not in text.replace("yaml.load(text, _Loader)", ""), path
