"""`aios generate`: a request to the daemon whose answer is shown as it is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from aios.cli import render
from aios.cli.ask import Memories, show_cost, text_argument, whole
from aios.cli.options import Json
from aios.messages import Response, State, from_wire

System = Annotated[str | None, typer.Option(help="What the model is told before the conversation.")]
MaxTokens = Annotated[int, typer.Option(help="New tokens at most.")]
Temperature = Annotated[float | None, typer.Option(help="Of the token distribution; 0 takes the most likely.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens that make up this share; 1 keeps all.")]
TopK = Annotated[int | None, typer.Option(help="Keep so many of the most likely tokens; 0 keeps all.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens less likely than this share of the likeliest.")]
Penalty = Annotated[float | None, typer.Option(help="Of tokens that stand in the text already; 1 is none.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the text before this; may be given several times.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text; drawn and shown when absent.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it stands, without the chat template.")]
Model = Annotated[str | None, typer.Option(help="A model's name; daemon.toml names the default.")]
NoStream = Annotated[bool, typer.Option("--no-stream", help="Print the text when it is complete.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer or continue; - reads standard input.")],
    system: System = None, max_tokens: MaxTokens = 256, temperature: Temperature = None, top_p: TopP = None,
    top_k: TopK = None, min_p: MinP = None, repetition_penalty: Penalty = None, stop: Stop = None, seed: Seed = None,
    raw: Raw = False, model: Model = None, memory: Memories = None, no_stream: NoStream = False, json: Json = False,
) -> None:
    """Continue a prompt with an autoregressive model.

    A model made for chat answers the prompt as a user's message. The text appears as it is written, on a terminal
    and in a pipe.
    """
    params = {"prompt": text_argument(prompt), "system": None if system is None else whole(system),
              "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
              "repetition_penalty": repetition_penalty, "stop": [whole(text) for text in stop or ()], "seed": seed,
              "raw": raw, "model": model, "memory": memory}
    from aios.ipc.client import connect

    with connect() as client:
        if json or no_stream:
            response = from_wire(client.call("generate", **params), Response)
            render.emit(response.to_json(), json, lambda: _show(response.text))
        else:
            response = _streamed(client.stream("generate", **params))
    if not json and render.is_terminal(sys.stdout):
        show_cost(response)


def _streamed(states: Iterator[State | Response]) -> Response:
    """Print the text piece by piece; what no state brought comes with the answer."""
    shown = 0
    for state in states:
        piece: Any = state.text[shown:] if isinstance(state, Response) else state.delta or ""
        if piece:
            print(_safe(piece), end="", flush=True)
            shown += len(piece)
        if isinstance(state, Response):
            print()
            return state
    raise AssertionError("a stream ends with its response")


def _show(text: str) -> None:
    print(_safe(text))


def _safe(text: str) -> str:
    """What a terminal may be given; a pipe receives the text as it is."""
    return render.printable(text) if render.is_terminal(sys.stdout) else text
