"""Chat templates: a conversation as the text a model was trained on.

A template is a Jinja program that comes with a model, from outside. It runs in Jinja's sandbox, with its size, its
output and its time limited; the worker's own limits stand behind these.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import msgspec
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from aios.errors import BadInput, ModelCorrupt
from aios.messages import PROMPT_CHARS_MAX, ChatMessage
from aios.text.sandbox import Refused, Sandbox
from aios.text.tokenizer import TextTokenizer

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
CONFIG_BYTES_MAX = 16 << 20         # some list every added token of a large vocabulary
TEMPLATE_CHARS_MAX = 1 << 17        # the longest in use, with tools and all, have 20,000
RENDERED_CHARS_MAX = 4 * PROMPT_CHARS_MAX
COMPILE_SECONDS_MAX = 10.0          # the longest in use take one; some constructs take the square of their number
RENDER_SECONDS_MAX = 2.0            # an honest one takes milliseconds
SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REMEDY = "pull or import the model again"


class ChatTemplate:
    """One model's template, compiled."""

    def __init__(self, source: str, specials: Mapping[str, str]) -> None:
        """`specials`: bos_token and its like, as the template names them. Raises ModelCorrupt for what is no Jinja."""
        if len(source) > TEMPLATE_CHARS_MAX:
            raise ModelCorrupt(f"the chat template has {len(source)} characters; the limit is {TEMPLATE_CHARS_MAX}",
                               remedy=REMEDY)
        self.source = source
        self._specials = dict(specials)
        self._environment = _environment()
        try:
            with _deadline(COMPILE_SECONDS_MAX):
                self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise ModelCorrupt(f"the chat template cannot be read: {error}", remedy=REMEDY) from error

    @classmethod
    def open(cls, folder: Path) -> ChatTemplate | None:
        """The template of the model in `folder`, None when it has none; raises ModelCorrupt."""
        config = read_config(folder / CONFIG)
        source: Any = config.get("chat_template")
        if isinstance(source, list):     # several by name, as older exports have them
            source = next((one.get("template") for one in source
                           if isinstance(one, dict) and one.get("name") == "default"), None)
        if (file := folder / TEMPLATE).is_file():
            source = _read(file, 4 * TEMPLATE_CHARS_MAX).decode("utf-8", "replace")
        return cls(source, specials(config)) if isinstance(source, str) and source else None

    def render(self, messages: Sequence[ChatMessage], tokenizer: TextTokenizer) -> str:
        """The text of a conversation up to where the assistant begins; BadInput says what the template refuses.

        Reserved tokens that people spelled out in their messages are guarded: `encode_rendered` reads them as text.
        """
        told = [{"role": one.role, "content": tokenizer.guarded(one.content)} for one in messages]
        given = {"messages": told, "tools": None, "documents": None, "add_generation_prompt": True}
        pieces, size = [], 0
        try:
            with _deadline(RENDER_SECONDS_MAX):
                self._environment.begin()
                for piece in self._template.generate(**self._specials, **given):
                    pieces.append(piece)
                    size += len(piece)
                    if size > RENDERED_CHARS_MAX:
                        raise Refused(f"it wrote more than {RENDERED_CHARS_MAX} characters")
        except Exception as error:   # a program from outside may raise anything
            raise BadInput(f"the model's chat template refuses this conversation: {str(error)[:300]}",
                           remedy="change the messages, or give a raw prompt") from error
        return "".join(pieces)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object that may be missing; raises ModelCorrupt."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(_read(path, CONFIG_BYTES_MAX), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"{path.name}: {error}", remedy=REMEDY, path=str(path)) from error


def specials(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and its like of a tokenizer_config.json, by name."""
    found = {name: config.get(name) for name in SPECIALS}
    plain = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: value for name, value in plain.items() if isinstance(value, str)}


class _Generation(Extension):
    """{% generation %}: marks for training what the assistant wrote; means nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Its body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> Sandbox:
    # The settings and functions that published templates are written for.
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True,
                          extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """End what runs in this thread inside the block when it takes too long, even in the tightest loop."""
    until = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > until:
            raise Refused(f"it takes longer than {seconds:g} s")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise ModelCorrupt(f"cannot read {path}: {error.strerror}", remedy=REMEDY) from error
    if len(raw) > bytes_max:
        raise ModelCorrupt(f"{path.name} is larger than {bytes_max} bytes", remedy=REMEDY)
    return raw
