"""The knobs of calibration. Recipes inherit these keys."""

from pydantic import BaseModel, ConfigDict, Field


class CalibrationOptions(BaseModel):
    """Which text a method learns from, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    calibration: str | None = None
    """A .txt, .json, .jsonl, .parquet or .pt (token ids) file; `self` (text that the model writes), `pydoc`
    (English that every Python carries); or a hub data set: pile-10k, c4, wikitext2, ptb, or any id with a text column.
    Left out: `self`, which needs neither data nor network."""

    nsamples: int = Field(default=128, ge=1)
    """Calibration samples, held-out ones included."""

    seqlen: int = Field(default=2048, ge=8)
    """Tokens per sample."""

    shuffle: bool = True
    """Take documents in an order drawn by the seed; off: as they come."""

    add_bos: bool = True
    """Begin every row with what the tokenizer puts in front of every text: the begin-of-text token of Llama, Gemma and
    Mistral, nothing for most others. Off: rows are cut from the running text, as GPTQ's, SpQR's and LRQ's authors do.
    Rows of token ids stay as they are given."""

    chat_template: bool = False
    """Wrap each text in the tokenizer's chat template as a user's message; rows with a `messages` list are
    rendered whole."""

    seed: int = Field(default=42, ge=0)
    """Seed of everything drawn at random: samples, minibatches, text from the model itself."""
