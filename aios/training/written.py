"""Text that a teacher model writes by request: asked in batches, filtered, kept in one file that grows.

A line of `written.jsonl` is one kept answer. `written.state.json` tells how far the requests have come and why answers
were dropped; the writer goes on from there.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aios.training.checkpoints import hold_while_paused, write_json
from aios.training.duplicates import Seen
from aios.training.prompts import Ask, ask
from aios.training.sources import Document, clean
from aios.training.vocabulary import guard

FILE: Final = "written.jsonl"
STATE: Final = "written.state.json"
WORDS_MIN: Final = 8
DISTINCT_3_MIN: Final = 0.8        # of an answer's word trigrams; text that circles falls below
WORD_SHARE_MAX: Final = 0.12       # of one word among all; "the" has 0.06 in plain prose
OPENING_WORDS: Final = 4           # answers that begin alike ...
OPENING_SHARE_MAX: Final = 0.01    # ... are kept up to this share of all, and
OPENINGS_MIN: Final = 20           # at least so many of each
PLAIN_SHARE_MIN: Final = 0.98      # of characters that an English keyboard has
_REFUSALS: Final = re.compile(
    r"\b(as an ai|language model|i'm sorry|i am sorry|i cannot|i can't assist|smollm|hugging ?face)|\[(your|name)", re.I
)
_PLAIN = re.compile(r"[\n -~]")
_WORD = re.compile(r"[\w']+")
_SENTENCE_END = re.compile(r"""(?<=[^\d\s])[.!?]["')]?(?=\s|$)""")   # "4." begins the next item of a list

Teacher = Callable[[Sequence[Ask]], Iterator[tuple[Ask, str, bool]]]   # request, answer, whether it ended by itself


def trimmed(text: str, ended: bool) -> str:
    """Return an answer up to its last whole sentence, without marks of layout."""
    text = text.strip().replace("**", "").replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"')
    if not ended:
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        text = text[:ends[-1]] if ends else ""
    return text


def fault(text: str) -> str | None:
    """Return why an answer is not kept, None if nothing speaks against it."""
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < WORDS_MIN:
        return "short"
    if _REFUSALS.search(text):
        return "refusal"
    if len(_PLAIN.findall(text)) < PLAIN_SHARE_MIN * len(text):
        return "odd characters"
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(trigrams)) < DISTINCT_3_MIN * len(trigrams):
        return "repetition"
    if len(words) > 40 and Counter(words).most_common(1)[0][1] > WORD_SHARE_MAX * len(words):
        return "one word"
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 12]
    if len(set(lines)) < len(lines):
        return "repetition"
    return None


class Writer:
    """The growing file in a folder: what was asked, what was kept, and what must not come again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.next, self.kept, self.bytes = 0, 0, 0
        self.dropped: Counter[str] = Counter()
        self._seen, self._openings = Seen(), Counter[str]()
        self._resume()

    @property
    def path(self) -> Path:
        return self.folder / FILE

    def _resume(self) -> None:
        """Take over what was written; a line that a crash tore is cut off."""
        if not self.path.exists():
            return
        whole = self.path.read_bytes()
        whole = whole[:whole.rfind(b"\n") + 1]
        os.truncate(self.path, len(whole))
        for line in whole.splitlines():
            row = json.loads(line)
            self._remember(row["text"])
            self._seen.repeats(Document(name="", lines=(row["text"],)))
            self.kept, self.next = self.kept + 1, max(self.next, row["number"] + 1)
        self.bytes = len(whole)
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        self.next = max(self.next, state["next"])
        self.dropped = Counter(state["dropped"])

    def _opening(self, text: str) -> str:
        return " ".join(_WORD.findall(text.lower())[:OPENING_WORDS])

    def _remember(self, text: str) -> None:
        self._openings[self._opening(text)] += 1

    def judge(self, text: str) -> str | None:
        """Return why a new answer is not kept, None if it is; a kept answer is remembered."""
        found = fault(text)
        if found is None and self._openings[self._opening(text)] >= max(OPENINGS_MIN, OPENING_SHARE_MAX * self.kept):
            found = "common opening"
        if found is None and (repeats := self._seen.repeats(Document(name="", lines=(text,)))):
            found = f"{repeats} duplicate"
        if found is None:
            self._remember(text)
        return found

    def write(self, teacher: Teacher, *, batch: int) -> None:
        """Ask for one batch and keep what is good, durably."""
        lines = []
        asked = [ask(number) for number in range(self.next, self.next + batch)]
        for one, answer, ended in sorted(teacher(asked), key=lambda told: told[0].number):
            text = trimmed(answer, ended)
            why = self.judge(text)
            if why is None:
                lines.append(json.dumps({"name": f"written/{one.number}", "number": one.number, "kind": one.kind,
                                         "prompt": one.prompt, "text": text}, ensure_ascii=False) + "\n")
                self.kept += 1
            else:
                self.dropped[why] += 1
        raw = "".join(lines).encode()
        with self.path.open("ab") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        self.next, self.bytes = self.next + batch, self.bytes + len(raw)
        write_json(self.told(), self.folder / STATE)

    def told(self) -> dict[str, Any]:
        """Return what stands in the state file."""
        return {"next": self.next, "kept": self.kept, "bytes": self.bytes, "dropped": dict(self.dropped)}


def write_until(writer: Writer, teacher: Teacher, *, batch: int, bytes_max: int,
                go_on: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Write batches until the file has `bytes_max` bytes or `go_on` says no; held by `aios train pause`."""
    while writer.bytes < bytes_max and go_on(writer.told()):
        hold_while_paused(writer.folder)
        writer.write(teacher, batch=batch)
    return writer.told()


def read_written(path: Path) -> Iterator[Document]:
    """Yield what was asked and what was written, one answer a document."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if not line.endswith("\n"):
                return   # the writer is in the middle of it
            row = json.loads(line)
            said = [guard(clean(part)) for part in row["text"].split("\n")]
            first, *rest = [part for part in said if part]
            asked = guard(clean(row["prompt"]))
            yield Document(name=row["name"], lines=(f"<|user|>{asked}<|assistant|>{first}", *rest))
