"""`aios diffuse`, `aios infill` and `aios encode`: requests to the daemon."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aios.cli import render
from aios.cli.options import Json
from aios.errors import BadInput
from aios.messages import PROMPT_CHARS_MAX, TEXTS_PER_ENCODE_MAX, Recollection, Response, State, from_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMPARED_TEXTS_MAX = 12   # a wider table of similarities fits no terminal

Length = Annotated[int | None, typer.Option(help="New tokens at most.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
Repairs = Annotated[int | None, typer.Option(help="How often code that breaks its grammar may be written anew.")]
Sampler = Annotated[str | None, typer.Option(help="ancestral, confidence or entropy.")]
Temperature = Annotated[float | None, typer.Option(help="Of the token distribution; 0 takes the most likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text; drawn and shown when absent.")]
Model = Annotated[str | None, typer.Option(help="A model's name; daemon.toml names the default.")]
Modality = Annotated[str, typer.Option(help="text, code, or what a plugin brings a head for.")]
Chat = Annotated[bool, typer.Option("--chat", help="Answer the prompt as a user's message.")]
System = Annotated[str | None, typer.Option(help="With --chat: what the model is told before the message.")]
Memories = Annotated[Recollection | None, typer.Option("--memory", help="auto: with the memories that matter in sight; "
                                                                        "off is the default.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Watch the text appear out of masks.")]


def diffuse(
    prompt: Annotated[str, typer.Argument(help="What to continue or, with --chat, answer; - reads standard input.")],
    chat: Chat = False, system: System = None, modality: Modality = "text", length: Length = None,
    steps: Steps = None, sampler: Sampler = None, temperature: Temperature = None, seed: Seed = None,
    model: Model = None, memory: Memories = None, watch: Watch = False, json: Json = False,
) -> None:
    """Continue a prompt, or answer it, by diffusion.

    On a terminal the prompt stands before the new text; a pipe receives the new text alone.
    """
    prompt = text_argument(prompt)
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    asked |= {"system": None if system is None else whole(system), "modality": modality, "model": model,
              "memory": memory}
    sampling = {"length": length, "steps": steps, "sampler": sampler, "temperature": temperature, "seed": seed}
    response = _generate("diffuse", {**asked, **sampling}, watch=watch, as_json=json)
    before = prompt.rstrip("\n") + "\n" if chat else prompt
    render.emit(response.to_json(), json, lambda: _show_answer(before, response, ""))


def infill(
    prefix: Annotated[str, typer.Argument(help="The text before the gap; - reads standard input.")],
    suffix: Annotated[str, typer.Argument(help="The text after the gap.")],
    modality: Modality = "text", length: Length = None, steps: Steps = None, sampler: Sampler = None,
    temperature: Temperature = None, seed: Seed = None, repairs: Repairs = None, model: Model = None,
    watch: Watch = False, json: Json = False,
) -> None:
    """Write what stands between a head and a tail.

    On a terminal the new text stands between the given ones; a pipe receives the new text alone.
    """
    prefix = text_argument(prefix)
    sampling = {"length": length, "steps": steps, "sampler": sampler, "temperature": temperature, "seed": seed}
    response = _generate("infill", {"prefix": prefix, "suffix": whole(suffix), "modality": modality, "model": model,
                                    "repairs": repairs, **sampling}, watch=watch, as_json=json)
    render.emit(response.to_json(), json, lambda: _show_answer(prefix, response, suffix))


def encode(
    texts: Annotated[list[str], typer.Argument(help="Texts; a single - reads one a line from standard input.")],
    model: Model = None, json: Json = False,
) -> None:
    """Turn texts into unit vectors.

    With --json the answer also carries `vectors`, one list of numbers for each text; without it the vectors
    of a few texts are compared with each other.
    """
    lines = text_argument("-").splitlines() if texts == ["-"] else [whole(text) for text in texts]
    if len(lines) > TEXTS_PER_ENCODE_MAX:
        raise BadInput(f"{len(lines)} texts; the limit is {TEXTS_PER_ENCODE_MAX}",
                       remedy="send them in several calls")
    from aios.ipc.client import connect

    with connect() as client:
        response = from_wire(client.call("encode", texts=lines, model=model), Response)
    vectors = _vectors(response)
    render.emit({**response.to_json(), "vectors": vectors}, json,
                lambda: _show_vectors(lines, vectors, response))


def text_argument(argument: str) -> str:
    """The argument itself, or standard input for `-`; raises BadInput when it is too long or no text."""
    if argument != "-":
        return whole(argument)
    raw = sys.stdin.buffer.read(4 * PROMPT_CHARS_MAX + 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"standard input is no UTF-8 text: {error.reason} at byte {error.start}",
                       remedy="convert it, for example with iconv") from error
    if len(text) > PROMPT_CHARS_MAX:
        raise BadInput(f"more than {PROMPT_CHARS_MAX} characters on standard input", remedy="shorten the text")
    return text


def whole(argument: str) -> str:
    """The argument; raises BadInput when the shell passed bytes that are no text."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput("an argument is no text in the terminal's encoding", remedy="pass UTF-8") from error
    return argument


def _generate(verb: str, params: dict[str, Any], *, watch: bool, as_json: bool) -> Response:
    """Ask the daemon, showing the denoising states when somebody is there to see them."""
    from aios.ipc.client import connect

    with connect() as client:
        if watch:
            from aios.cli.watch import watched

            return watched(client.stream(verb, **params))
        if as_json or not render.is_terminal(sys.stderr):
            return from_wire(client.call(verb, **params), Response)
        return _with_bar(client.stream(verb, **params))


def _with_bar(states: Iterator[State | Response]) -> Response:
    with render.progress("denoising", False, unit="steps") as move:
        for state in states:
            if isinstance(state, Response):
                return state
            move(state.step, state.steps, "")
    raise AssertionError("a stream ends with its response")


def _show_answer(before: str, response: Response, after: str) -> None:
    if not render.is_terminal(sys.stdout):
        print(response.text)
        return
    before, after = (render.paint(render.printable(text), "2", sys.stdout) for text in (before, after))
    print(before + render.printable(response.text) + after)
    show_cost(response)


def show_cost(response: Response) -> None:
    """What the answer cost and how it can be had again, as a remark."""
    usage, verdict = response.usage, response.verdict
    seed = f", seed {response.seed}" if response.seed is not None else ""
    used = f", memories {', '.join(map(str, verdict.memories))}" if verdict.memories else ""
    tokens = f"{usage.completion_tokens} tokens, {usage.steps} steps, " if usage.steps else ""
    mended = f", {verdict.repairs} repairs" if verdict.repairs else ""
    flawed = ", which breaks the grammar" if verdict.flawed else ""
    render.remark(f"({tokens}{render.duration(usage.compute_ms / 1000)}, {verdict.model}{seed}{used}{mended}{flawed})")


def _vectors(response: Response) -> list[list[float]]:
    """The rows of the answer's tensor part: little-endian f32, (n, d) in its MIME type."""
    part = response.parts[0]
    shape = dict(field.partition("=")[::2] for field in part.mime.split(";")[1:])["shape"]
    _, width = (int(axis) for axis in shape.split(","))
    numbers = array("f", part.data or b"")
    if sys.byteorder == "big":
        numbers.byteswap()
    values = numbers.tolist()
    return [values[start:start + width] for start in range(0, len(values), width)]


def _show_vectors(texts: Sequence[str], vectors: Sequence[Sequence[float]], response: Response) -> None:
    if len(vectors) > COMPARED_TEXTS_MAX:
        render.say(f"{len(vectors)} vectors of {len(vectors[0])} numbers; --json prints them")
        return
    rows = [[str(i + 1), *(f"{sum(a * b for a, b in zip(one, other, strict=True)):.2f}" for other in vectors), text]
            for i, (one, text) in enumerate(zip(vectors, texts, strict=True))]
    render.table(["", *(str(i + 1) for i in range(len(vectors))), "cosine similarity"], rows, "no texts, no vectors")
    show_cost(response)
