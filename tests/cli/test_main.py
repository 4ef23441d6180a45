"""The command line as a whole: help, usage, errors, exit codes, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import typer

import aios
from aios.cli import main as cli
from aios.errors import AiosError, BadInput, Busy, ConfigError, DaemonDown, ModelMissing, NotAllowed

if TYPE_CHECKING:
    from tests.cli.conftest import Run

FOREGROUND = "daemon"   # it answers nobody: its events are the log
HEAVY = {"torch", "pyarrow", "numpy", "rich", "pluggy", "asyncio", "msgpack", "msgspec", "tokenizers", "cryptography",
         "apscheduler", "watchdog"}


def aios_process(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aios", *words], capture_output=True, text=True, timeout=60,
                          check=False, env={**os.environ, **environ})


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is no group, with the words that name it."""
    if isinstance(command, cli.LazyCommand):
        command = command.load()
    inner = getattr(command, "commands", {})
    for name, below in inner.items():
        yield from leaves(below, (*path, name))
    if not inner:
        yield path, command


COMMANDS = list(leaves(cli.command()))


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    program = ("import sys\nfrom aios.cli.main import main\ncode = main(['--help'])\n"
               "sys.stderr.write(' '.join(sys.modules))\nsys.exit(code)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("aios")} <= {
        "aios", "aios.cli", "aios.cli.main", "aios.cli.render", "aios.cli.options", "aios.errors"}
    listed = done.stdout.partition("Commands:")[2]
    assert all(f"\n  {entry.name} " in listed for entry in cli.COMMANDS)


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: entry.name)
def test_the_table_says_what_the_command_itself_says(entry: cli.Entry) -> None:
    assert cli.LazyCommand(entry).load().help.splitlines()[0].startswith(entry.help.rstrip("."))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_has_help_and_json(path: tuple[str, ...], command: Any) -> None:
    assert command.help and command.help[0].isupper()
    assert path == (FOREGROUND,) or "--json" in [option for param in command.params for option in param.opts]


@pytest.mark.parametrize("words", [(), ("models",), ("plugins",), ("--help",), ("models", "-h")])
def test_asking_for_help_is_no_error(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.code == 0
    assert done.out.startswith("Usage: aios")


@pytest.mark.parametrize("words", [("nonsense",), ("status", "--nonsense"), ("infill", "one"), ("models", "nonsense"),
                                   ("diffuse", "a", "--steps", "many"), ("eval", "a", "b"), ("logs", "-n", "-1")])
def test_wrong_usage_ends_with_64_and_a_hint(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.code == 64
    assert done.out == ""
    first, second = done.err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  aios") and second.endswith("--help")


def test_a_typo_is_answered_with_what_was_meant(run: Run) -> None:
    assert "Did you mean 'models'?" in run("modles").err


def test_with_json_an_error_is_the_one_object_on_standard_output(run: Run) -> None:
    done = run("models", "show", "nobody", "--json")
    assert done.err == ""
    assert done.code == ModelMissing.exit_code
    assert done.json["error"]["code"] == "model.missing"
    assert run("nonsense", "--json").json["error"]["code"] == "usage"


def test_words_after_two_dashes_are_never_options(run: Run) -> None:
    done = run("models", "show", "--", "--json")
    assert done.out == ""
    assert "error: " in done.err


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: cli.LazyCommand) -> Any:
        def fail(json: bool = typer.Option(False, "--json")) -> None:
            """Fail."""
            raise error

        app = typer.Typer(add_completion=False)
        app.command()(fail)
        return cli.get_command(app)

    monkeypatch.setattr(cli.LazyCommand, "load", load)


@pytest.mark.parametrize("error", [
    AiosError("a"), BadInput("b", remedy="do c"), Busy("d"), ConfigError("e"), DaemonDown("f"), NotAllowed("g")],
    ids=lambda error: type(error).__name__)
def test_an_error_is_one_line_its_remedy_and_its_exit_code(
        run: Run, monkeypatch: pytest.MonkeyPatch, error: AiosError) -> None:
    raising(error, monkeypatch)
    done = run("version")
    assert done.code == error.exit_code
    assert done.err == f"error: {error.message}\n" + (f"  {error.remedy}\n" if error.remedy else "")
    assert run("version", "--json").json["error"] == dict(
        zip(("code", "message", "remedy", "details"), error.to_wire(), strict=True))


def test_a_defect_is_reported_as_one_and_debug_shows_where(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(ZeroDivisionError("oh"), monkeypatch)
    plain, debug = run("version"), run("version", "--debug")
    assert plain.code == debug.code == 70
    assert "Traceback" not in plain.err
    assert "ZeroDivisionError: oh" in plain.err
    assert "Traceback" in debug.err


def test_an_error_message_cannot_command_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(BadInput("\x1b]0;owned\x07 \x9b2J", remedy="\x1b[31m"), monkeypatch)
    assert not set(run("version").err) & {"\x1b", "\x07", "\x9b"}


def test_ctrl_c_ends_with_130_and_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    done = run("version")
    assert (done.code, done.out, done.err) == (130, "", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m aios api --json | true; exit ${{PIPESTATUS[0]}}"],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1, 141)   # 0 when the pipe's buffer took everything in time
    assert done.stderr == ""


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version").out == run("version").out == f"aios {aios.__version__}\n"
    assert run("version", "--json").json["version"] == aios.__version__


@pytest.mark.parametrize(("shell", "line"), [("bash", "aios mod"), ("zsh", "aios mod"), ("fish", "aios mod"),
                                             ("bash", "aios models pu"), ("zsh", "aios models pu")])
def test_completion_knows_commands_and_their_commands(shell: str, line: str) -> None:
    *before, last = line.split()
    done = aios_process(_AIOS_COMPLETE=f"complete_{shell}", COMP_WORDS=line, COMP_CWORD=str(len(before)),
                        _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert {"mod": "models", "pu": "pull"}[last] in done.stdout
    assert "start" not in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_exist(shell: str) -> None:
    done = aios_process(_AIOS_COMPLETE=f"source_{shell}")
    assert "_AIOS_COMPLETE=complete_" + shell in done.stdout


def test_the_module_runs_as_the_command_does() -> None:
    done = aios_process("version", "--json")
    assert json.loads(done.stdout)["version"] == aios.__version__
