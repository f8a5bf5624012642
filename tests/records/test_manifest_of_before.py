"""Folders of the version before, whose layers said some things in words only, open as they did."""

import json
from pathlib import Path

import pytest

import roundel
from roundel.records.manifest import MANIFEST, read_manifest
from roundel.system.belongings import PAGE, REPORT
from zoo import zoo_model

pytestmark = pytest.mark.reports
SMOOTHED = roundel.Recipe(
    method="rtn", act_bits=8, smooth=0.5, group_size=32, format="dense", nsamples=4, seqlen=32
)


def test_what_is_tied_and_smoothed(tmp_path: Path, held_out: Path) -> None:
    original, out = zoo_model("gemma3"), tmp_path / "out"
    roundel.quantize(original, SMOOTHED, output=out, calibration=str(held_out), held_out=None)
    now = read_manifest(out)
    assert {layer["name"] for layer in now["layers"] if layer["tied"]} == {"lm_head"}
    assert any(layer["smoothed"] for layer in now["layers"])
    page = (out / PAGE).read_text(encoding="utf-8")
    for name in (MANIFEST, REPORT):
        content = json.loads((out / name).read_text(encoding="utf-8"))
        for layer in (content if name == MANIFEST else content["manifest"])["layers"]:
            del layer["tied"], layer["smoothed"]
        (out / name).write_text(json.dumps(content), encoding="utf-8")
    assert read_manifest(out)["layers"] == now["layers"]
    roundel.render_report(out)
    assert (out / PAGE).read_text(encoding="utf-8") == page
    how = {"text": str(held_out), "window": 32, "limit": 2}
    errors = {
        layer["name"]: layer["error"]
        for layer in roundel.compare([out], original, **how)["models"][0]["layers"]
    }
    assert {name for name, error in errors.items() if error is None} == {
        layer["name"] for layer in now["layers"] if layer["smoothed"]
    }
