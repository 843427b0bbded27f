"""The command line: each command parses its options, calls the library and prints the result.

`e2rank --help` lists the commands. Each file here holds one command, and `options` what several
commands share. A command imports the library in its body, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from e2rank_rag import terminal
from e2rank_rag.cli.bench import bench
from e2rank_rag.cli.check import check
from e2rank_rag.cli.demo import demo
from e2rank_rag.cli.evaluate import evaluate
from e2rank_rag.cli.index import index
from e2rank_rag.cli.label import label
from e2rank_rag.cli.report import report
from e2rank_rag.cli.search import search
from e2rank_rag.cli.training import adapt, average, mine, train
from e2rank_rag.cli.verify import verify

COMMANDS = (
    demo,
    index,
    search,
    evaluate,
    check,
    report,
    verify,
    mine,
    label,
    train,
    adapt,
    average,
    bench,
)
"""In the order of `--help`."""


class _Group(TyperGroup):
    """Escapes messages about wrong usage, which quote arguments of any characters."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with terminal.printable_usage():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with terminal.printable_usage():
            return super().invoke(ctx)


app = typer.Typer(
    name="e2rank",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Index, search and rerank documents with one embedding model. Try `e2rank demo` first.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. --debug shows the traceback of a failure.",
)


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Declare --debug for the help text. `main` removes it, so it may stand at any place."""


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command in `sys.argv`. An error is one line on stderr; --debug adds the traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        with terminal.printable_logs():
            app(arguments, prog_name="e2rank")
    except Exception as error:
        if debug:
            lines = terminal.printable_lines(traceback.format_exc())
            terminal.err.print(Text(lines), soft_wrap=True, end="")
        message = " ".join(str(error).split()) or type(error).__name__
        terminal.say(terminal.err, message, label="error:")
        sys.exit(1)
