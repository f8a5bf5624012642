"""The knobs of calibration. Recipes inherit these keys."""

from pydantic import BaseModel, ConfigDict, Field, field_validator


class CalibrationOptions(BaseModel):
    """Which text a method learns from, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    calibration: str | None = None
    """Files (.txt .json .jsonl .csv .tsv .parquet .arrow .pt, also as .gz .bz2 .xz .zst), folders and patterns of
    them; `self` (text that the model writes), `pydoc` (English that every Python carries); or a hub data set: pile-10k,
    c4, wikitext2, ptb, or any id. A field and a number of samples may follow, and other sources:
    `chats.jsonl:300,texts.csv:body:100`. Left out: `self`, which needs neither data nor network."""

    encoding: str | None = None
    """Encoding of text files without a byte order mark: latin-1, cp1252, utf-16-le, gb18030, ... Left out: UTF-8."""

    nsamples: int = Field(default=128, ge=1)
    """Calibration samples, held-out ones included. Left out: 128, or the sum where every source of `calibration` says
    how many it gives."""

    seqlen: int = Field(default=2048, ge=8)
    """Tokens per sample."""

    shuffle: bool = True
    """Take documents in an order drawn by the seed; off: as they come."""

    add_bos: bool = True
    """Begin every row with what the tokenizer puts in front of every text: the begin-of-text token of Llama, Gemma and
    Mistral, nothing for most others. Off: rows are cut from the running text, as GPTQ's, SpQR's and LRQ's authors do.
    Rows of token ids stay as they are given."""

    chat_template: bool | None = None
    """Chats go through the tokenizer's chat template, where there is one. On: texts do too, each as a user's message.
    Off: nothing does, and the turns of chats are joined as plain text."""

    seed: int = Field(default=42, ge=0)
    """Seed of everything drawn at random: samples, minibatches, text from the model itself."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        check_encoding(value)
        return value


def check_encoding(name: str | None) -> None:
    """Raise ValueError unless Python knows an encoding of text by this name."""
    if name is None:
        return
    try:
        "a".encode(name)
        b"".decode(name)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no encoding of text: latin-1, cp1252, utf-16-le or another one that Python knows is expected"
        ) from error
