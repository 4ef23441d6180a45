"""`aios service`: the daemon under systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aios import config
from aios.cli import render
from aios.cli.options import Json, group

if TYPE_CHECKING:
    from aios.service.units import Outcome, ServiceManager

EXIT_NOT_ACTIVE = 3   # as `systemctl status` and LSB have it

app = group("Run the daemon as a systemd service.")

User = Annotated[str | None, typer.Option("--system", metavar="USER", help="The system's aios@USER.service, which "
                                                                          "starts at boot; needs root.")]


@app.command()
def install(user: User = None,
            socket: Annotated[bool, typer.Option("--socket", help="Let the first client start the daemon.")] = False,
            json: Json = False) -> None:
    """Write the unit, enable it and start it."""
    places = config.Places.find()
    drain = config.load(places.config_file).daemon.drain_seconds
    _report(_manager(user).install(socket=socket, drain_seconds=drain), as_json=json)


@app.command()
def uninstall(user: User = None, json: Json = False) -> None:
    """Stop the unit and remove it."""
    _report(_manager(user).uninstall(), as_json=json)


@app.command()
def status(user: User = None, json: Json = False) -> int:
    """What systemd says of the unit; exit code 3 when it is not active."""
    found: dict[str, Any] = dict(_manager(user).status())
    render.emit(found, json, lambda: render.facts(found))
    return 0 if found.get("ActiveState") == "active" else EXIT_NOT_ACTIVE


def _manager(user: str | None) -> ServiceManager:
    from aios.service.units import ServiceManager

    places = config.Places.find()
    return ServiceManager.of_user(places) if user is None else ServiceManager.of_system(places, user)


def _report(outcome: Outcome, *, as_json: bool) -> None:
    found = {"files": [str(path) for path in outcome.files], "managed": outcome.managed, "note": outcome.note}
    render.emit(found, as_json, lambda: render.say("\n".join([outcome.note, *map(str, outcome.files)])))
