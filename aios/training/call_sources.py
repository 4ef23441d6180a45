"""Requests and what they ask for: tool calls, intents, worked problems, definitions, conversations with roles."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from aios.errors import BadInput
from aios.training.sources import Document, clean, conversations, rows_of
from aios.training.vocabulary import guard

HISTORY_TURNS_MAX: Final = 6           # what a call depends on lies in the last turns
MEMBER_BYTES_MAX: Final = 64 << 20     # of one file inside an archive; the largest is 18 MB
CALLS_MEMBER: Final = "datasets/device-actions-v2-collect/assist-llm-function-calling-messages/train/messages.jsonl"
ROLES: Final[Mapping[str, str]] = {"USER": "<|user|>", "SYSTEM": "<|assistant|>"}
WORDNET_PARTS: Final[Mapping[str, str]] = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_SUM = re.compile(r"<<[^<>]*>>")


def compact(value: Any) -> str:
    """Return JSON without spaces, in the order given."""
    return guard(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a tool call as the models write it."""
    return "<|call|>" + compact({"name": name, "arguments": arguments})


def read_task_dialogues(path: Path) -> Iterator[Document]:
    """Yield task dialogues with roles, turn after turn on one line."""
    name, turns = "", list[str]()
    for row in rows_of(path, ["split", "dialogue", "speaker", "utterance"]):
        row_name = f"{row['split']}/{row['dialogue']}"
        if row_name != name:
            if turns:
                yield Document(name=name, lines=("".join(turns),))
            name, turns = row_name, []
        if utterance := guard(clean(row["utterance"])):
            turns.append(ROLES[row["speaker"]] + utterance)
    if turns:
        yield Document(name=name, lines=("".join(turns),))


def read_service_calls(path: Path) -> Iterator[Document]:
    """Yield the last turns of a task dialogue and the service call they lead to; named after the dialogue."""
    for row in rows_of(path, ["split", "dialogue", "history", "call", "service"]):
        if not row["call"]:
            continue
        turns = [line.partition(": ") for line in row["history"].splitlines()[-HISTORY_TURNS_MAX:]]
        if not turns or any(speaker not in ROLES for speaker, _, _ in turns):
            continue
        text = "".join(ROLES[speaker] + guard(clean(said)) for speaker, _, said in turns)
        wanted = json.loads(row["call"])
        yield Document(name=f"{row['split']}/{row['dialogue']}",
                       lines=(text + call(wanted["method"], wanted["parameters"]),))


def read_home_calls(path: Path) -> Iterator[Document]:
    """Yield requests to a smart home with the call or the answer they get."""
    for index, line in enumerate(_member(path, CALLS_MEMBER).splitlines()):
        text = ""
        for message in json.loads(json.loads(line)["messages"]):
            if message["role"] == "user":
                text += "<|user|>" + guard(clean(message["content"]))
            elif message["role"] == "assistant":
                asked = [one["function"] for one in message.get("tool_calls") or ()]
                text += "".join(call(one["name"], one["arguments"]) for one in asked)
                if said := guard(clean(message.get("content") or "")):
                    text += "<|assistant|>" + said
        if "<|call|>" in text or "<|assistant|>" in text:
            yield Document(name=str(index), lines=(text,))


def _member(path: Path, ending: str) -> str:
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.name.endswith(ending) and entry.isfile() and entry.size <= MEMBER_BYTES_MAX:
                opened = archive.extractfile(entry)
                assert opened is not None
                return opened.read().decode("utf-8")
    raise BadInput(f"{path.name} holds no {ending}", remedy="fetch the version that docs/data.md names")


def read_intents(path: Path) -> Iterator[Document]:
    """Yield requests with the name of what they want; the validation rows are left out."""
    for index, row in enumerate(rows_of(path, ["split", "text", "intent"])):
        if row["split"] == "train":
            line = "<|user|>" + guard(clean(row["text"])) + call(row["intent"], {})
            yield Document(name=str(index), lines=(line,))


def read_worked_problems(path: Path) -> Iterator[Document]:
    """Yield word problems with their steps and result."""
    for index, row in enumerate(rows_of(path, ["question", "answer"])):
        steps, _, result = _SUM.sub("", row["answer"]).partition("####")
        answer = f"{clean(steps)} The answer is {clean(result)}."
        text = f"<|user|>{guard(clean(row['question']))}<|assistant|>{guard(answer)}"
        yield Document(name=str(index), lines=(text,))


def read_conversations(path: Path) -> Iterator[Document]:
    """Yield open-domain conversations with roles in turn."""
    for name, turns in conversations(path):
        roles = ("<|user|>", "<|assistant|>")
        text = "".join(roles[index % 2] + guard(turn) for index, turn in enumerate(turns))
        yield Document(name=name, lines=(text,))


def read_glosses(path: Path) -> Iterator[Document]:
    """Yield WordNet's definitions with their examples, one sense a document."""
    with tarfile.open(fileobj=io.BytesIO(_debian_data(path)), mode="r:xz") as archive:
        for kind, spoken in WORDNET_PARTS.items():
            opened = archive.extractfile(f"./usr/share/wordnet/data.{kind}")
            assert opened is not None
            for line in opened.read(MEMBER_BYTES_MAX).decode("utf-8").splitlines():
                if not line.startswith("  "):
                    yield _gloss(line, spoken)


def _gloss(line: str, spoken: str) -> Document:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    words = ", ".join(fields[4 + 2 * index].replace("_", " ") for index in range(count))
    return Document(name=f"{fields[2]}{fields[0]}", lines=(guard(clean(f"{words} ({spoken}): {gloss}")),))


def _debian_data(path: Path) -> bytes:
    """Return data.tar.xz of a Debian package, an `ar` archive of three members."""
    raw = path.read_bytes()
    at = 8   # behind "!<arch>\n"
    while at + 60 <= len(raw):
        name, size = raw[at:at + 16].strip(), int(raw[at + 48:at + 58])
        if name.rstrip(b"/") == b"data.tar.xz":
            return raw[at + 60:at + 60 + size]
        at += 60 + size + size % 2
    raise BadInput(f"{path.name} holds no data.tar.xz", remedy="fetch it again: apt-get download wordnet-base")
