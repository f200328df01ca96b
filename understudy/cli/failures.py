"""Errors at the command line: one sentence, the request id where there is one, an exit code."""

import sys
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from understudy.errors import InvalidArgument, NotFound, Unauthenticated, UnderstudyError

FAILED: Final = 1
ASKED_WRONGLY: Final = 2
INTERRUPTED: Final = 130


class Commands(TyperGroup):
    """The command group; whatever command fails, it fails here."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command; named errors and Ctrl-C end it without a traceback."""
        console = Console(stderr=True)
        try:
            return super().invoke(ctx)
        except UnderstudyError as error:
            console.print(describe(error), highlight=False, soft_wrap=True)
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            console.print("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(FAILED) from None


def describe(error: UnderstudyError) -> str:
    """Return the error as rich markup."""
    request = f" [dim](request {escape(error.request_id)})[/]" if error.request_id else ""
    return f"[bold red]Error:[/] {escape(error.message)}{request}"


def exit_code(error: UnderstudyError) -> int:
    """Return 2 for what the caller must correct, else 1."""
    if isinstance(error, InvalidArgument | NotFound | Unauthenticated):
        return ASKED_WRONGLY
    return FAILED
