"""`aios plugins`: what is found, what may run, and writing one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aios import config
from aios.cli import render
from aios.cli.options import Json, Yes, group
from aios.errors import EX_DATAERR, DaemonDown

HASH_CHARS_SHOWN = 12   # enough to tell contents apart; --json has the whole

app = group("See, allow, check and write plugins.")

Name = Annotated[str, typer.Argument(help="The plugin's name.")]


@app.command("list")
def list_plugins(json: Json = False) -> None:
    """Every plugin found, its state and why."""
    try:
        plugins: list[dict[str, Any]] = _call("plugins.list")
    except DaemonDown:
        plugins = [report.to_wire() for report in _catalog().reports()]
        if not json:
            render.remark("the daemon does not run: this is what it would find")
    _show_list(plugins, as_json=json)


@app.command()
def show(name: Name, json: Json = False) -> None:
    """One plugin: manifest, content hash, state, reason."""
    try:
        found: dict[str, Any] = _call("plugins.show", name=name)
    except DaemonDown:
        found = _catalog().report(name).to_wire()
    render.emit(found, json, lambda: render.facts(found))


@app.command()
def allow(name: Name, yes: Yes = False, json: Json = False) -> None:
    """Allow a plugin's present content, after showing what it is.

    The permission is bound to the content's hash: it ends when a byte of the plugin changes.
    """
    shown: dict[str, Any] = _call("plugins.allow", name=name)
    if not yes:
        for field, value in shown.items():
            render.remark(f"{field:<14}{value}")
        render.remark("its code will run in the model worker with your rights: it can read and write your files")
        render.confirm(f"allow {name}?")
    allowed = _call("plugins.allow", name=name, confirm=shown["hash"])
    render.emit(allowed, json, lambda: render.say(f"allowed: {name} {str(shown['hash'])[:HASH_CHARS_SHOWN]}"))


@app.command()
def reload(json: Json = False) -> None:
    """Look for plugins again and load them anew."""
    _show_list(_call("plugins.reload"), as_json=json)


@app.command()
def check(target: Annotated[str, typer.Argument(metavar="FOLDER|NAME", help="A plugin's folder or its name.")],
          json: Json = False) -> int:
    """What the daemon would say about a plugin, before it is allowed.

    Its code is run in a process of its own, with your rights.
    """
    from aios.registry.check import check as check_plugin

    with render.progress(f"checking {target}", json, unit="steps"):
        checks = check_plugin(target, config.Places.find())
    ok = all(one.ok is not False for one in checks)
    found = {"ok": ok, "checks": [{"name": one.name, "ok": one.ok, "detail": one.detail} for one in checks]}
    verdicts = {True: "ok", False: "failed", None: "not looked at"}
    render.emit(found, json, lambda: render.table(
        ["", "check", ""], [[verdicts[one.ok], one.name, one.detail] for one in checks], "nothing to check"))
    return 0 if ok else EX_DATAERR


@app.command()
def new(name: Annotated[str, typer.Argument(help="The plugin's name: a small letter, then a-z, 0-9, _ and -.")],
        folder: Annotated[Path | None, typer.Option("--dir", metavar="DIR", help="Where to write it; the plugins "
                                                                                 "folder when absent.")] = None,
        json: Json = False) -> None:
    """Write a working plugin with a passing test."""
    from aios.registry.scaffold import write_plugin

    places = config.Places.find()
    if folder is None:
        places.create()
    written = write_plugin(name, folder or places.plugins)
    files = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    render.emit({"name": name, "folder": str(written), "files": files}, json, lambda: render.say(str(written)))
    if not json:
        render.remark(f"next: aios plugins check {written}")
        render.remark(f"then: aios plugins allow {name}" if folder is None else
                      f"then: move it to {places.plugins} and aios plugins allow {name}")


def _call(verb: str, **params: Any) -> Any:
    from aios.ipc.client import connect

    with connect() as client:
        return client.call(verb, **params)


def _catalog() -> Any:
    from aios.registry.catalog import Catalog

    places = config.Places.find()
    return Catalog(places, config.load(places.config_file).plugins)


def _show_list(plugins: list[dict[str, Any]], *, as_json: bool) -> None:
    rows = [[plugin["name"], plugin["version"], plugin["state"], plugin["source"], plugin["capabilities"],
             plugin["reason"] or plugin["description"]] for plugin in plugins]
    render.emit({"plugins": plugins}, as_json, lambda: render.table(
        ["plugin", "version", "state", "source", "brings", ""], rows, "no plugins; `aios plugins new` writes one"))
    for plugin in plugins:
        if plugin["remedy"] and not as_json:
            render.remark(f"{plugin['name']}: {plugin['remedy']}")
