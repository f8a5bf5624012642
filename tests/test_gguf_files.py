"""What the benchmarks of GGUF files count and compare (benchmarks/gguf_files.py)."""

from pathlib import Path

import torch

from gguf_files import GgufFile, Kept
from roundel.evaluation.distribution import Full
from zoo import zoo_model
from zoo.gguf_file import write_gguf


def test_filling_a_model_gives_what_opening_the_file_does(tmp_path: Path) -> None:
    file = GgufFile(write_gguf(zoo_model("llama"), tmp_path / "llama.gguf"))
    opened, filled = file.open(), file.open()
    for tensor in filled.state_dict().values():
        tensor.zero_()
    file.fill(filled)
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, filled.state_dict()[name]), name


def test_all_bytes_of_the_file_are_counted(tmp_path: Path) -> None:
    path = write_gguf(zoo_model("llama"), tmp_path / "llama.gguf")
    file = GgufFile(path)
    figures = file.figures(file)
    numbers = sum(p.numel() for p in file.open().parameters())
    assert figures["bytes"] == path.stat().st_size
    assert figures["bits_per_parameter"] * numbers == 8 * path.stat().st_size
    assert sum(figures["types_in_blocks"].values()) == 1


def test_kept_predictions_compare_as_logits_do() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, found = torch.randn(2, 30, 100, generator=generator)
    window = torch.randint(100, (30,), generator=generator)
    kept, full = (kind.compare(found, window) for kind in (Kept.of(wanted, window), Full(wanted)))
    assert torch.equal(kept.kl, full.kl)
    assert torch.equal(kept.loss, full.loss)
    assert torch.equal(kept.found_loss, full.found_loss)
    assert torch.equal(kept.same, full.same)
