"""`roundel generate`."""

from typing import Annotated

import typer

import roundel
from roundel.cli.display import out
from roundel.cli.options import ModeOption, PackedOption, RevisionOption, TrustOption


def generate_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    prompt: Annotated[str, typer.Argument(help="What a user says to it, or the beginning of a text.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, though there is a chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 64,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    packed: PackedOption = None,
    mode: ModeOption = "exact",
) -> None:
    """Answer a prompt greedily, or continue it, where the model has no chat template."""
    text = roundel.generate(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        raw=raw,
        revision=revision,
        trust_remote_code=trust_remote_code,
        packed=packed,
        mode=mode,
    )
    out.print(text, soft_wrap=True)
