"""`aios token`: scoped tokens for other clients of the same user."""

from __future__ import annotations

from typing import Annotated

import typer

from aios.cli import render
from aios.cli.options import Json, group

app = group("Scoped tokens for other clients.")

Name = Annotated[str, typer.Argument(help="The token's name.")]


@app.command()
def new(name: Name,
        scope: Annotated[list[str] | None, typer.Option(help="ask, memory, plugins or admin; may be repeated. "
                                                             "The default is ask alone.")] = None,
        json: Json = False) -> None:
    """Make a token; its secret is shown this once."""
    from aios.ipc.client import connect

    with connect() as client:
        made = client.call("tokens.new", name=name, scopes=scope or ["ask"])
    render.emit(made, json, lambda: render.facts(made))
    if not json:
        render.remark("the secret is not kept anywhere: store it where only its client can read it")


@app.command("list")
def list_tokens(json: Json = False) -> None:
    """Names and scopes of the tokens; never their secrets."""
    from aios.ipc.client import connect

    with connect() as client:
        tokens = client.call("tokens.list")
    columns = list(tokens[0]) if tokens else []
    render.emit({"tokens": tokens}, json, lambda: render.table(
        columns, [[token.get(name) for name in columns] for token in tokens], "no tokens; `aios token new` makes one"))


@app.command()
def revoke(name: Name, json: Json = False) -> int:
    """Withdraw a token; connections that used it keep no right."""
    from aios.ipc.client import connect

    with connect() as client:
        gone = client.call("tokens.revoke", name=name)
    render.emit({"revoked": gone}, json, lambda: render.say("revoked" if gone else f"no token is called {name}"))
    return 0 if gone else 1
