"""What transformers leaves out of a GGUF file is said."""

from pathlib import Path

import gguf
import pytest

from roundel.formats.gguf.file import Field, FileTensor, GgufFile, write_file
from roundel.formats.gguf.unread import unread_settings
from roundel.model.source import open_source
from zoo import zoo_model
from zoo.gguf_file import write_gguf


@pytest.fixture
def plain(tmp_path: Path) -> GgufFile:
    return GgufFile(write_gguf(zoo_model("llama"), tmp_path / "plain.gguf"))


def with_fields(file: GgufFile, path: Path, *more: Field) -> GgufFile:
    """The same file with more metadata, and without tensors."""
    write_file(path, [*file.fields, *more], [], [])
    return GgufFile(path)


def test_of_a_plain_file_nothing_is_said(plain: GgufFile) -> None:
    assert unread_settings(plain, open_source(plain.path).model.config) == ""


@pytest.mark.parametrize(
    ("key", "value", "kind", "words"),
    [
        (
            "rope.scaling.type",
            "yarn",
            gguf.GGUFValueType.STRING,
            "without the scaling of its rotary embedding:",
        ),
        ("attention.sliding_window", 128, gguf.GGUFValueType.UINT32, "without the sliding window of its"),
    ],
)
def test_what_is_left_out_is_said(
    plain: GgufFile, tmp_path: Path, key: str, value: object, kind: gguf.GGUFValueType, words: str
) -> None:
    config = open_source(plain.path).model.config
    file = with_fields(plain, tmp_path / "more.gguf", Field(f"llama.{key}", value, kind))
    assert words in unread_settings(file, config)


def test_a_table_of_rotary_factors_is_a_scaling(plain: GgufFile, tmp_path: Path) -> None:
    config = open_source(plain.path).model.config
    file = GgufFile(plain.path)
    file.tensors["rope_freqs.weight"] = FileTensor("rope_freqs.weight", (8,), gguf.GGMLQuantizationType.F32)
    assert "scaling" in unread_settings(file, config)
