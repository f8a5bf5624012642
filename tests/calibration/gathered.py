"""Documents as people have them, and the calibration that is gathered from them."""

from typing import Any

from roundel.calibration.gather import Calibration, gather_calibration
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.sources import parse_sources
from roundel.calibration.texts import read_documents
from roundel.system.progress import Progress
from zoo.prefixes import tokenizer_with
from zoo.texts import Model

TEXTS = [f'Thing {n}: "quoted", with commas;\nmore lines\tand tabs, ä, 漢.' for n in range(40)]
CHATS = [[("user", f"What is {n}?"), ("assistant", f"It is {n}, of course.")] for n in range(40)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TURNS = [[{"role": role, "content": said} for role, said in chat] for chat in CHATS]
ROWS = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]


class Told(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def options(**values: Any) -> CalibrationOptions:
    return CalibrationOptions(**{"nsamples": 6, "seqlen": 32, **values})


def gather(
    source: Any, template: str | None = None, told: Progress | None = None, **values: Any
) -> Calibration:
    tokenizer = tokenizer_with("<s> $A")
    tokenizer.chat_template = template
    return gather_calibration(source, Model(), tokenizer, options(**values), told or Progress())


def documents(source: str, encoding: str | None = None) -> list[Any]:
    (place,) = parse_sources(source)
    return read_documents(place, encoding).documents
