"""The command line: reads words, calls the library, prints tables or JSON.

Exit codes: 0 an answer (that a model does not fit is one), 2 input that makes no sense.
"""

import gc
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from opgraph.cli import accuracy, catalogue, operators, steps
from validation.cli import app as measuring

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

BAD_INPUT = 2
_GC_THRESHOLD = 100_000


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Simulate LLM inference on multi-chip platforms, operator by operator."""
    if context.invoked_subcommand is None:
        print(context.get_help())


# the class of all complaints about options, wherever the library keeps it
_UsageError: Any = typer.BadParameter.__mro__[1]


class _Command(TyperCommand):
    """A command of which each option is given once: the last would win without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read *args*; a complaint says of which command."""
        try:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            for option in order:
                if order.count(option) > 1 and getattr(option, "multiple", None) is False:
                    raise typer.BadParameter(f"{option.opts[0]} is given twice")
            return super().parse_args(ctx, args)
        except _UsageError as error:
            error.ctx = error.ctx or ctx
            raise


for commands in (steps.app, catalogue.app, operators.app, accuracy.app, measuring):
    for command in commands.registered_commands:
        command.cls = _Command
    app.add_typer(commands)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    # a command is short and leaves few cycles: to look for them is a fifth of a search's time
    gc.set_threshold(_GC_THRESHOLD)
    try:
        code = app(prog_name="opgraph", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "opgraph"
        code = _complain(f"{error.format_message()} (see {command} --help)")
    except ValueError as error:
        code = _complain(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except OSError as error:
        code = _complain(f"{error.filename or 'a file'}: {error.strerror}")
    except typer.Abort:
        code = 1
    sys.exit(code)


def _complain(message: str) -> int:
    print(f"opgraph: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
