"""`roundel generate`: text on stdout as it comes, and nothing else there; how fast it came on stderr."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

import roundel
from roundel.cli.display import err, show_text
from roundel.cli.options import ModeOption, PackedOption, RevisionOption, TrustOption
from roundel.errors import RecipeError

if TYPE_CHECKING:
    from roundel.model.streamer import Speed

_LEAVE = "/exit"


def generate_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    prompt: Annotated[
        str | None, typer.Argument(help="What a user says to it, or the beginning of a text.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help=f"Hold a conversation: a turn on each line of stdin, until {_LEAVE}."),
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, though there is a chat template.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to add at most; left out: 64, in a chat 512 for each answer."),
    ] = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    packed: PackedOption = None,
    mode: ModeOption = "exact",
) -> None:
    """Answer a prompt greedily, or continue it, where the model has no chat template; or hold a conversation."""
    if chat and raw:
        raise RecipeError("--raw and --chat are given: one is expected, a text or a conversation")
    if prompt is None and not chat:
        raise RecipeError("there is no prompt: some text is expected, or --chat for a conversation")
    speeds: list[Speed] = []

    def end(speed: "Speed") -> None:
        show_text("\n")
        speeds.append(speed)

    how: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "packed": packed,
        "mode": mode,
        "on_text": show_text,
        "on_end": end,
    }
    if max_new_tokens is not None:
        how["max_new_tokens"] = max_new_tokens
    if prompt is not None and not chat:
        roundel.generate(model, prompt, raw=raw, **how)
    else:
        roundel.chat(model, _turns(prompt), **how)
    if speeds:
        err.print(_in_words(speeds), style="dim")


def _in_words(speeds: list["Speed"]) -> str:
    """`12 prompt tokens at 310.4 per second, 64 new tokens at 41.7 per second`, of all answers together."""
    read = _rate(sum(s.prompt_tokens for s in speeds), sum(s.prompt_seconds for s in speeds))
    made = _rate(sum(s.steps for s in speeds), sum(s.new_seconds for s in speeds))
    prompt, new = sum(s.prompt_tokens for s in speeds), sum(s.new_tokens for s in speeds)
    return f"{prompt} prompt tokens{read}, {new} new tokens{made}"


def _rate(count: int, seconds: float) -> str:
    return f" at {count / seconds:.1f} per second" if count and seconds > 0 else ""


def _turns(first: str | None) -> Iterator[str]:
    """What the user says: the prompt, if there is one, and then the lines of stdin."""
    if first is not None:
        yield first
    while True:
        if sys.stdin.isatty():
            err.print("> ", end="")
        line = sys.stdin.readline()
        if not line or line.strip() == _LEAVE:
            return
        yield line.strip()
