"""The held-out Python functions of `aios eval code`: standard-library functions that no recipe trains on.

    python -m aios.lab.functions runs/data/small

writes the set anew from this interpreter's standard library, beside the built data whose training streams say what
a model may have seen. A document is held out by the split of its name, or because its folder is left out of every
recipe; a body that a training stream contains word for word is no question and is dropped.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from aios.errors import BadInput
from aios.lab.syntax import function_shape

if TYPE_CHECKING:
    from aios.training.sources import Document

SET: Final = Path(__file__).parent / "sets" / "heldout_functions.parquet"
RECIPE: Final = "small"                          # whose vocabulary counts the tokens
LEFT_OUT: Final = ("idlelib", "turtledemo")      # whole packages that no recipe reads; encodings are tables
LICENCE: Final = "PSF-2.0"
FUNCTIONS_MAX: Final = 500
BODY_TOKENS_MAX: Final = 64
# Everything together fits the 256 tokens of a small model's context, sentinels of a twin included.
HEADER_TOKENS_MAX, CONTEXT_TOKENS_MAX, TAIL_TOKENS_MAX = 120, 40, 20
TAIL_CHARS: Final = 400                          # more than twenty tokens have
ZSTD_LEVEL: Final = 19

KEY_TOKENS: Final = 4                            # fit a 64-bit number; a body of fewer is a `pass` or a `return`

Tokens = NDArray[np.uint16]
Held = Literal["test", "left_out"]
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutFunction:
    """One function in its file: `context + header + body + tail` stands there, up to comments and blank lines.

    header: decorators, signature and docstring. body: begins with a line break and ends without one. held: why no
    training sees it: the test split, or a package that is left out. origin: the file's path in the library.
    """

    name: str
    origin: str
    held: Held
    licence: str
    context: str
    header: str
    body: str
    tail: str


def read_functions(path: Path = SET) -> list[HeldOutFunction]:
    """The committed set, or another file of the same columns."""
    from pyarrow import parquet

    return [HeldOutFunction(**row) for row in parquet.read_table(path).to_pylist()]


def write_functions(functions: Sequence[HeldOutFunction], path: Path = SET) -> None:
    """Write a set as zstd Parquet; a crash leaves the old file or the new one."""
    from pyarrow import Table, parquet

    from aios.training.checkpoints import publish

    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".partial")
    table = Table.from_pylist([asdict(one) for one in functions])
    parquet.write_table(table, staged, compression="zstd", compression_level=ZSTD_LEVEL)
    publish(staged, path)


def held_back(origin: str) -> Held | None:
    """Why no training run of the recipe sees this file of the standard library; None if it does."""
    from aios.training.build import place
    from aios.training.recipes.mixtures import read_mixture

    if Path(origin).parts[0] in LEFT_OUT:
        return "left_out"
    return "test" if place(origin) < read_mixture(RECIPE).test_percent / 100 else None


def held_documents(library: Path) -> Iterator[Document]:
    """The files of a standard library that no training run sees, cleaned as training text is."""
    from aios.training import code_sources

    for document in code_sources.read_library(library):
        if held_back(document.name) == "test":
            yield document
    for package in LEFT_OUT:
        assert package in code_sources.LEFT_OUT, f"{package} is trained on"
        for path in sorted((library / package).glob("*.py")):   # without the tests below
            inside = str(path.relative_to(library))
            if found := code_sources.code_document(inside, path.read_text(encoding="utf-8", errors="replace")):
                yield found


def functions_of(document: Document, tokenizer: Any) -> Iterator[HeldOutFunction]:
    """The functions and methods of one document that are short enough and whose parts make the whole again."""
    text = "\n".join(document.lines).removeprefix("<|code|>")
    held = held_back(document.name)
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    lines = text.split("\n")
    for name, node in _definitions(tree, ""):
        parts = _parts(node, lines)
        if held is None or parts is None:
            continue
        begin, header, body, end = parts
        found = HeldOutFunction(
            name=name, origin=document.name, held=held, licence=LICENCE, context=_context(lines[:begin], tokenizer),
            header=header, body=body, tail=_tail(lines[end:], tokenizer))
        short = _count(tokenizer, body) <= BODY_TOKENS_MAX and _count(tokenizer, header) <= HEADER_TOKENS_MAX
        if short and _whole(found, tokenizer) and function_shape(header + body) is not None:
            yield found


def unseen(functions: Iterable[HeldOutFunction], tokenizer: Any, streams: Sequence[Tokens]
           ) -> Iterator[HeldOutFunction]:
    """The functions whose body is in no stream of training tokens, each body once; bodies too short to tell go."""
    bodies: dict[tuple[int, ...], HeldOutFunction] = {}
    for one in functions:
        ids = tuple(tokenizer.encode(one.body).ids[1:])   # without the first line break: its indentation may differ
        if len(ids) >= KEY_TOKENS:
            bodies.setdefault(ids, one)
    trained = _standing_in(bodies, streams)
    yield from (one for ids, one in bodies.items() if ids not in trained)


def _standing_in(bodies: Iterable[tuple[int, ...]], streams: Sequence[Tokens]) -> set[tuple[int, ...]]:
    """Which of the token sequences stand in a stream: places by their first tokens, then compared whole."""
    beginnings: dict[int, list[tuple[int, ...]]] = {}
    for ids in bodies:
        beginnings.setdefault(int(_keys(np.array(ids[:KEY_TOKENS], np.uint16))[0]), []).append(ids)
    wanted, found = np.array(sorted(beginnings), np.uint64), set[tuple[int, ...]]()
    for stream in streams:
        keys = _keys(stream)
        for at in np.flatnonzero(np.isin(keys, wanted)).tolist():
            found |= {ids for ids in beginnings[int(keys[at])] if tuple(stream[at:at + len(ids)].tolist()) == ids}
    return found


def _keys(tokens: Tokens) -> NDArray[np.uint64]:
    """For each place of a stream its next four tokens as one number."""
    count = max(len(tokens) - KEY_TOKENS + 1, 0)
    keys = np.zeros(count, np.uint64)
    for index in range(KEY_TOKENS):
        keys = keys << np.uint64(16) | tokens[index:index + count].astype(np.uint64)
    return keys


def collect(data: Path, library: Path, *, functions_max: int = FUNCTIONS_MAX) -> list[HeldOutFunction]:
    """The set: all functions of test documents, then others in an order of their own, by name.

    data: the built recipe. BadInput when it is not there.
    """
    from tokenizers import Tokenizer

    from aios.training.build import place
    from aios.training.data import load_stream

    if not (data / "manifest.json").is_file():
        raise BadInput(f"no data in {data}", remedy=f"aios train data build {RECIPE} --out {data}")
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    streams = [load_stream(path).tokens for name in ("library", "packages", "algorithms")
               if (path := data / f"{name}.train.npz").is_file()]
    found = [one for document in held_documents(library) for one in functions_of(document, tokenizer)]
    found.sort(key=lambda one: (one.held != "test", place(f"{one.origin}:{one.name}")))
    return list(unseen(found, tokenizer, streams))[:functions_max]


def _definitions(node: ast.AST, within: str) -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield within + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _definitions(child, f"{within}{child.name}.")


def _parts(node: Definition, lines: Sequence[str]) -> tuple[int, str, str, int] | None:
    """First line, header, body, line behind the end; None for a body on the signature's line, or no more than told."""
    begin = min(node.lineno, *(one.lineno for one in node.decorator_list), node.lineno) - 1
    described = ast.get_docstring(node, clean=False) is not None
    statements = node.body[described:]
    if not statements or node.end_lineno is None:
        return None
    first = statements[0]
    decorated = [one.lineno for one in getattr(first, "decorator_list", ())]
    cut = (node.body[0].end_lineno or 0) if described else min(first.lineno, *decorated, first.lineno) - 1
    if lines[first.lineno - 1][:first.col_offset].strip() or cut >= first.lineno:
        return None
    while not lines[cut - 1].strip():   # where a comment was: one token with the line break behind it
        cut -= 1
    return begin, "\n".join(lines[begin:cut]), "\n" + "\n".join(lines[cut:node.end_lineno]), node.end_lineno


def _whole(one: HeldOutFunction, tokenizer: Any) -> bool:
    """Whether the parts are cut between tokens, so that the number of hidden ones is known."""
    parts = [one.context + one.header, one.body, one.tail]
    ids = [index for part in parts for index in tokenizer.encode(part).ids]
    return bool(ids == tokenizer.encode("".join(parts)).ids)


def _context(before: Sequence[str], tokenizer: Any) -> str:
    """The last whole lines before a function, within the limit."""
    kept: list[str] = []
    for line in reversed(before):
        if _count(tokenizer, "\n".join([line, *kept, ""])) > CONTEXT_TOKENS_MAX:
            break
        kept.insert(0, line)
    return "\n".join([*kept, ""]) if kept else ""


def _tail(after: Sequence[str], tokenizer: Any) -> str:
    """The first tokens behind a function; a line break at the end of a file."""
    text = ("\n" + "\n".join(after))[:TAIL_CHARS]
    ends = tokenizer.encode(text).offsets[:TAIL_TOKENS_MAX]
    return text[:ends[-1][1]]


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text).ids)


def main(arguments: Sequence[str]) -> None:
    """Write the committed set from the built data in the folder that is named."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m aios.lab.functions FOLDER   (what `aios train data build small` wrote)")
    from aios.training.code_sources import standard_library

    functions = collect(Path(arguments[0]), standard_library())
    write_functions(functions)
    tested = sum(one.held == "test" for one in functions)
    print(f"{len(functions)} functions, {tested} of them from the test split: {SET}")


if __name__ == "__main__":
    main(sys.argv[1:])
