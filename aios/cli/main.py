"""`aios`: the table of commands, and the one place where an error becomes a line and an exit code.

A command's module is imported when the command runs, so that `aios --help` loads no more than this file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from aios.cli import render
from aios.cli.options import show_help
from aios.errors import EX_USAGE, AiosError, Internal

EXIT_DECLINED = 1        # the answer to a question was no
EXIT_INTERRUPTED = 130   # 128 + SIGINT, what shells expect
EXIT_BROKEN_PIPE = 141   # 128 + SIGPIPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of `aios --help`: a function or a group of commands, and where it lives."""

    name: str
    home: str     # "module:attribute" below aios.cli
    help: str


COMMANDS: tuple[Entry, ...] = (
    Entry(name="start", home="daemon:start", help="Start the daemon in the background and wait until it is ready."),
    Entry(name="stop", home="daemon:stop", help="Drain the daemon and wait until it has ended."),
    Entry(name="restart", home="daemon:restart", help="Stop the daemon if it runs, then start it."),
    Entry(name="reload", home="daemon:reload", help="Read daemon.toml and the plugins again."),
    Entry(name="status", home="daemon:status", help="Show the daemon at a glance; exit code 3 when it does not run."),
    Entry(name="logs", home="logs:logs", help="Show the daemon's log."),
    Entry(name="daemon", home="daemon:daemon", help="Run the daemon in the foreground."),
    Entry(name="service", home="service:app", help="Run the daemon as a systemd service."),
    Entry(name="generate", home="generate:generate", help="Continue a prompt with an autoregressive model."),
    Entry(name="diffuse", home="ask:diffuse", help="Continue a prompt, or answer it, by diffusion."),
    Entry(name="infill", home="ask:infill", help="Write what stands between a head and a tail."),
    Entry(name="encode", home="ask:encode", help="Turn texts into unit vectors."),
    Entry(name="remember", home="remember:remember", help="Keep a memory."),
    Entry(name="recall", home="remember:recall", help="Find the memories nearest in meaning."),
    Entry(name="forget", home="remember:forget", help="Forget memories for good, by id or by conditions."),
    Entry(name="memory", home="memory:app", help="The store of memories: see, move, compact, and import notes."),
    Entry(name="models", home="models:app", help="Install, import, export, compress, verify and remove models."),
    Entry(name="plugins", home="plugins:app", help="See, allow, check and write plugins."),
    Entry(name="token", home="tokens:app", help="Scoped tokens for other clients."),
    Entry(name="api", home="api:api", help="Print every verb of the daemon with its types."),
    Entry(name="bench", home="lab:bench", help="Measure speed, memory and load."),
    Entry(name="eval", home="lab:evaluate", help="Measure quality; `aios eval campaign NAME` runs an attack campaign."),
    Entry(name="lab", home="lab:app", help="The ledger of what was measured."),
    Entry(name="train", home="train:app", help="Train models: data from recipes, runs from plans."),
    Entry(name="version", home="version:version", help="Print the version."),
)


class LazyCommand(TyperCommand):
    """Stands for a command until it is called; then its module is imported and it takes over."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(name=entry.name, help=entry.help, short_help=entry.help, rich_markup_mode=None)
        self.entry = entry

    def load(self) -> Any:
        """The real command."""
        module, attribute = self.entry.home.split(":")
        found: typer.Typer | Callable[..., Any] = getattr(import_module(f"aios.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
            alone.command(self.entry.name)(found)
            found = alone
        return get_command(found)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command."""
        return self.load().make_context(info_name, args, parent=parent, **extra)


def command() -> TyperGroup:
    """The whole command line; its parts are not imported yet."""
    app = typer.Typer(help="AIOS: an agent operating system daemon whose intelligence runs on your own machine.",
                      rich_markup_mode=None, pretty_exceptions_enable=False, invoke_without_command=True,
                      context_settings={"help_option_names": ["-h", "--help"]})

    @app.callback()
    def root(
        context: typer.Context,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand "
                                                            "anywhere.")] = False,
        version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    ) -> int:
        if version:
            from aios.cli.version import version as print_version

            print_version()
            raise typer.Exit
        return 0 if context.invoked_subcommand else show_help(context)

    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for entry in COMMANDS:
        group.add_command(LazyCommand(entry))
    return group


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code (sysexits for errors, 64 for wrong usage, 130 after Ctrl-C)."""
    args = list(sys.argv[1:] if argv is None else argv)
    end = args.index("--") if "--" in args else len(args)
    as_json, debug = "--json" in args[:end], "--debug" in args[:end]
    args = [word for word in args[:end] if word != "--debug"] + args[end:]
    render.never_fail_on_encoding()
    try:
        outcome = command().main(args=args, prog_name="aios", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader is gone: the interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except typer.Abort:
        return _fail(Usage("nothing was done"), as_json, EXIT_DECLINED)
    except typer.TyperException as error:
        return _fail(Usage(error.format_message(), remedy=_usage_remedy(error)), as_json, EX_USAGE)
    except Exception as error:   # the boundary: every failure ends as one line and an exit code
        if debug:
            import traceback

            traceback.print_exc()
        known = error if isinstance(error, AiosError) else Internal(
            f"{type(error).__name__}: {error}", remedy="this is a defect of AIOS; run it again with --debug")
        return _fail(known, as_json, known.exit_code)
    return outcome if type(outcome) is int else 0


class Usage(AiosError):
    """The command line itself is wrong."""

    code = "usage"
    exit_code = EX_USAGE


def _usage_remedy(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "aios --help"


def _fail(error: AiosError, as_json: bool, exit_code: int) -> int:
    render.failure(error, as_json=as_json)
    return exit_code
