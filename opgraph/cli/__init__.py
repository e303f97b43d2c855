"""The command line: reads words, calls the library, prints tables or JSON.

Exit codes: 0 an answer (that a model does not fit is one), 2 input that makes no sense.
"""

import sys
from typing import Any

import typer

from opgraph.cli import accuracy, catalogue, operators, steps
from validation.cli import app as measuring

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

BAD_INPUT = 2


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Simulate LLM inference on multi-chip platforms, operator by operator."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for commands in (steps.app, catalogue.app, operators.app, accuracy.app, measuring):
    app.add_typer(commands)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        code = _complain(f"{error.format_message()} (see opgraph --help)")
    except (ValueError, OSError) as error:
        code = _complain(str(error))
    except typer.Abort:
        code = 1
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code)


# the class of all complaints about options, wherever the library keeps it
_UsageError: Any = typer.BadParameter.__mro__[1]


def _complain(message: str) -> int:
    print(f"opgraph: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
