"""Python source as training text: the standard library, permissive packages, algorithms."""

from __future__ import annotations

import io
import re
import sysconfig
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aios.training.sources import Document, rows_of
from aios.training.vocabulary import guard

CODE_BYTES_MAX: Final = 400_000   # longer files are tables
LINE_CHARS_MAX: Final = 400       # data in the clothes of code
LEFT_OUT: Final = {"test", "tests", "idle_test", "site-packages", "idlelib", "turtledemo", "lib2to3", "ensurepip",
                   "__pycache__", "encodings", "pydoc_data", "config", "_vendor", "vendor"}
PACKAGES: Final = {   # wheel -> sha256, licence in docs/data.md
    "attrs-24.2.0-py3-none-any.whl": "81921eb96de3191c8258c199618104dd27ac608d9366f5e35d011eae1867ede2",
    "boltons-24.1.0-py3-none-any.whl": "a1776d47fdc387fb730fba1fe245f405ee184ee0be2fb447dd289773a84aed3b",
    "click-8.1.7-py3-none-any.whl": "ae74fb96c20a0277a1d615f1e4d73c8414f5a98db8b799a7931d1582f3390c28",
    "flask-3.1.0-py3-none-any.whl": "d667207822eb83f1c4b50949b1623c8fc8d51f2341d65f72e1a1815397551136",
    "jinja2-3.1.4-py3-none-any.whl": "bc5dd2abb727a5319567b7a813e6a2e7318c39f4f487cfe6c89c6f9c7d25197d",
    "more_itertools-10.5.0-py3-none-any.whl": "037b0d3203ce90cca8ab1defbbdac29d5f993fc20131f3664dc8d6acfa872aef",
    "networkx-3.4.2-py3-none-any.whl": "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f",
    "pyparsing-3.2.0-py3-none-any.whl": "93d9577b88da0bbea8cc8334ee8b918ed014968fd2ec383e868fb8afb1ccef84",
    "requests-2.32.3-py3-none-any.whl": "70761cfe03c773ceb22aa2f671b4757976145175cdfca038c02654d061d6dcc6",
    "rich-13.9.4-py3-none-any.whl": "6049d5e6ec054bf2779ab3358186963bac2ea89175919d699e378b99738c2a90",
    "sortedcontainers-2.4.0-py2.py3-none-any.whl": "a163dcaede0f1c021485e957a39245190e74249897e2ae4b2aa38595db237ee0",
    "textual-0.89.1-py3-none-any.whl": "0a5d214df6e951b4a2c421e13d0b608482882471c1e34ea74a3631adede8054f",
    "toolz-1.0.0-py3-none-any.whl": "292c8f1c4e7516bf9086f8850935c799a874039c8bcf959d47b600e4c44a6236",
    "werkzeug-3.1.3-py3-none-any.whl": "54b78bf3716d19a65be4fceccc0d1d7b89e608834989dfae50ea87564639213e",
}
_BLANKS = re.compile(r"\n{3,}")


def plain_code(source: str) -> str | None:
    """Return Python source without comments, trailing spaces and runs of blank lines; None if it is no such thing.

    Comments go because half of them are licences and separators; docstrings stay: they say what code is for.
    """
    if len(source) > CODE_BYTES_MAX or "\x00" in source:
        return None
    lines = source.expandtabs(4).splitlines()
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (tokenize.TokenError, SyntaxError):
        return None
    if any(len(line) > LINE_CHARS_MAX for line in lines):
        return None
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    return guard(_BLANKS.sub("\n\n", text)) or None


def code_document(name: str, source: str) -> Document | None:
    """Return a file as one document that begins with the token for code; None if it is empty or no Python."""
    text = plain_code(source)
    return Document(name=name, lines=tuple(f"<|code|>{text}".split("\n"))) if text else None


def standard_library() -> Path:
    """Return the folder of this interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_library(folder: Path) -> Iterator[Document]:
    """Yield the standard library's files, without its tests and tables."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if LEFT_OUT & set(inside.parts[:-1]):
            continue
        found = code_document(str(inside), path.read_text(encoding="utf-8", errors="replace"))
        if found:
            yield found


def read_package(path: Path) -> Iterator[Document]:
    """Yield the Python files of one wheel."""
    package = path.name.split("-")[0]
    with zipfile.ZipFile(path) as wheel:
        for entry in sorted(wheel.infolist(), key=lambda info: info.filename):
            parts = Path(entry.filename).parts
            if not entry.filename.endswith(".py") or LEFT_OUT & set(parts) or entry.file_size > CODE_BYTES_MAX:
                continue
            source = wheel.read(entry).decode("utf-8", errors="replace")
            if found := code_document(f"{package}/{entry.filename}", source):
                yield found


def read_algorithms(path: Path) -> Iterator[Document]:
    """Yield the algorithms, one file a document."""
    for row in rows_of(path, ["path", "code"]):
        if found := code_document(row["path"], row["code"]):
            yield found
