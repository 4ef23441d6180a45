"""Whether generated text is a Python function, and the same one: parsed and compiled in memory, never run."""

from __future__ import annotations

import ast
import warnings
from typing import Final

SOURCE_CHARS_MAX: Final = 8192   # a held-out function has about 1,500; deep nesting needs length
# What the parser and the compiler say of bad source: grammar, null bytes and lone surrogates, nesting.
NOT_PYTHON: Final = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


def function_parses(source: str) -> bool:
    """Whether `source` parses and its first statement is a function that does more than describe itself.

    A method keeps its indentation: it is read as part of a class.
    """
    tree = _parsed(source)
    if tree is None:
        return False
    first = _first(tree)
    described = ast.get_docstring(first, clean=False) is not None if first else False
    return first is not None and len(first.body) > described


def function_shape(source: str) -> str | None:
    """The syntax tree of a function that compiles, without places and formatting; None if it does not."""
    tree = _parsed(source)
    if tree is None or not function_parses(source):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(tree, "<generated>", "exec", dont_inherit=True)   # compiled, and thrown away
        return ast.dump(tree)
    except NOT_PYTHON:
        return None


def _parsed(source: str) -> ast.Module | None:
    if len(source) > SOURCE_CHARS_MAX:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(f"class _:\n{source}" if source[:1] == " " else source)
    except NOT_PYTHON:
        return None


def _first(tree: ast.Module) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    body: list[ast.stmt] = tree.body
    while body and isinstance(body[0], ast.ClassDef) and body[0].name == "_":
        body = body[0].body
    return body[0] if body and isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef)) else None
