"""What a run must not do to the folder that it is told to write, nor to its source.

Bad targets and their messages are rows in bad_outputs.py; a disk that is full is in test_folder.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import mounted

from bad_inputs.box import UP, WEIGHTS, Box
from bad_inputs.commands import quantize
from bad_inputs.run import contents, run
from roundel.errors import OutputError
from roundel.formats.folder import check_target
from zoo import zoo_model

pytestmark = pytest.mark.reports


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written."""
    with mounted(tmp_path, "ro") as disk:
        yield disk


def test_a_file_system_that_cannot_be_written(sealed: Path) -> None:
    code, err, _ = run(*quantize(zoo_model("llama"), "-o", sealed / "out"))
    assert code == 6
    assert "cannot be written (Read-only file system): choose another folder" in err
    assert "Traceback" not in err


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    box = Box(tmp_path)
    old = box.quantized()
    before = contents(old)
    code, _, _ = run(*quantize(box.filled(UP, float("nan")), "-o", old, "--overwrite"))
    assert (code, contents(old)) == (7, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]


def test_the_source_is_never_in_the_way(tmp_path: Path) -> None:
    model = Box(tmp_path).model(name="models/llama")
    (tmp_path / "link").symlink_to(model)
    for target in (model, model.parent, tmp_path / "models" / ".." / "models" / "llama"):
        for source in (model, tmp_path / "link", model / WEIGHTS):
            with pytest.raises(OutputError, match="which it would replace"):
                check_target(target, True, source)
    with pytest.raises(OutputError, match="inside the model"):
        check_target(model / "small", False, tmp_path / "link")
    check_target(tmp_path / "models" / "small", False, model)
    check_target(tmp_path / "out", False, Path("some-owner/some-model"))
