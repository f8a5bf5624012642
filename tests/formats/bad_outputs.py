"""Outputs where something is already, or that have no name of their own."""

from pathlib import Path

from bad_inputs.box import Box
from bad_inputs.case import area
from bad_inputs.commands import plain, quantize


def _linked(box: Box, name: str, aim: str) -> Path:
    (box / name).symlink_to(aim)
    return box / name


ROWS = [
    ("a file", "is a file", lambda b: plain("-o", b.write("file", "x"))(b)),
    ("a file, with a slash behind it", "is a file", lambda b: plain("-o", f"{b.write('file', 'x')}/")(b)),
    (
        "a folder that is not empty",
        "pass --overwrite",
        lambda b: plain("-o", b.write("old/x", "x").parent)(b),
    ),
    (
        "somebody's folder, with `--overwrite`",
        "thesis.tex, which roundel did not write",
        lambda b: plain("-o", b.write("mine/thesis.tex", "years").parent, "--overwrite")(b),
    ),
    (
        "an output with somebody's files in it, with `--overwrite`",
        "holds notes/, notes/a.txt, which roundel did not write",
        lambda b: plain("-o", b.quantized(name="notes/a.txt", content="mine"), "--overwrite")(b),
    ),
    (
        "an output of which a file was changed, with `--overwrite`",
        "config.json (changed since), which roundel did not write",
        lambda b: plain("-o", b.quantized(name="config.json", content="{}"), "--overwrite")(b),
    ),
    (
        "somebody's folder where the work goes",
        "with notes.txt in it, which roundel did not make",
        lambda b: (b.write(".out.roundel/notes.txt", "mine"), plain("-o", b / "out", "--restart")(b))[1],
    ),
    ("inside a file", "file is a file", lambda b: plain("-o", b.write("file", "x") / "out")(b)),
    ("`-o .`", "has no name of its own", plain("-o", ".")),
    ("`-o ..`", "has no name of its own", plain("-o", "..", "--overwrite")),
    ("an empty name", "has no name of its own", plain("-o", "")),
    ("`-o /`", "has no name of its own", plain("-o", "/", "--overwrite")),
    (
        "a link to a folder",
        "is a link to",
        lambda b: ((b / "a").mkdir(), plain("-o", _linked(b, "l", "a"))(b))[1],
    ),
    ("a link to nothing", "is a link to", lambda b: plain("-o", _linked(b, "l", "gone"))(b)),
    ("a name that is too long", "File name too long", lambda b: plain("-o", b / ("x" * 250))(b)),
    (
        "the model itself",
        "which it would replace",
        lambda b: quantize(m := b.model(), "-o", m, "--overwrite"),
    ),
    (
        "the folder around the model",
        "which it would replace",
        lambda b: quantize(b.model(name="models/llama"), "-o", b / "models", "--overwrite"),
    ),
    (
        "inside the model",
        "choose a folder outside of it",
        lambda b: quantize(m := b.model(), "-o", m / "small"),
    ),
]

AREA = area("The output folder", ROWS, code=6)
