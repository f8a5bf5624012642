"""The `roundel` command: its parts, and the one place where errors become messages and exit codes."""

import io
import signal
import sys

import typer

from roundel.cli.bench import bench_command
from roundel.cli.compare import compare_command
from roundel.cli.display import Interrupted, err, first_rank, on_interrupt
from roundel.cli.evaluate import evaluate_command
from roundel.cli.export import export_command
from roundel.cli.generate import generate_command
from roundel.cli.inspect import inspect_command
from roundel.cli.plan import plan_command
from roundel.cli.push import push_command
from roundel.cli.quantize import quantize_command
from roundel.cli.recipes import recipes_command
from roundel.cli.report import report_command
from roundel.cli.sweep import sweep_command
from roundel.errors import RoundelError, Stopped
from roundel.system.torchrun import number

app = typer.Typer(
    name="roundel",
    help="Make large language models small without making them dumb: weight quantization by learned rounding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("quantize")(quantize_command)
app.command("sweep")(sweep_command)
app.command("plan")(plan_command)
app.command("eval")(evaluate_command)
app.command("compare")(compare_command)
app.command("export")(export_command)
app.command("generate")(generate_command)
app.command("bench")(bench_command)
app.command("inspect")(inspect_command)
app.command("push")(push_command)
app.command("report")(report_command)
app.command("recipes")(recipes_command)


def main() -> None:
    """Run the command line; leave with a RoundelError's own exit code, 130 after Ctrl-C."""
    signal.signal(signal.SIGINT, on_interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no é shows \xe9
    try:
        app()
    except RoundelError as error:
        if first_rank():
            _complain(str(error))
        elif _met() and not error.everywhere:
            _complain(f"rank {number()}: {error}")
        sys.exit(error.exit_code)
    except Interrupted:
        _complain("interrupted at once; what was finished before is kept")
        sys.exit(Stopped.exit_code)
    finally:
        _leave()


def _met() -> bool:
    """Whether this process has joined other ranks; without their module it has not."""
    ranks = sys.modules.get("roundel.system.ranks")
    return ranks is not None and ranks.met()


def _leave() -> None:
    if _met():
        sys.modules["roundel.system.ranks"].destroy_ranks()


def _complain(message: str) -> None:
    err.print(f"error: {message}", style="bold red", soft_wrap=True)
