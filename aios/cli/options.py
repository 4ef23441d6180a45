"""What many commands share: options, and how a group of commands is made."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def group(help_text: str) -> typer.Typer:
    """A group of commands that prints its help when it is called without one."""
    app = typer.Typer(help=help_text, rich_markup_mode=None, add_completion=False,
                      pretty_exceptions_enable=False, invoke_without_command=True)

    @app.callback()
    def root(context: typer.Context) -> int:
        return 0 if context.invoked_subcommand else show_help(context)

    return app


def show_help(context: typer.Context) -> int:
    """Print the help of the command at hand; returns exit code 0."""
    print(context.get_help())
    return 0
