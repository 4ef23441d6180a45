"""AIOS: an agent operating system daemon whose intelligence runs locally. Imports no torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aios._native import FastTokenizer as FastTokenizer
    from aios.engine.arrow import ArrowEngine as ArrowEngine
    from aios.hookspecs import hookimpl as hookimpl
    from aios.ipc.client import AsyncClient as AsyncClient
    from aios.ipc.client import Client as Client
    from aios.ipc.client import connect as connect
    from aios.ipc.client import connect_async as connect_async
    from aios.memory.vector_index import VectorIndex as VectorSearch
    from aios.memory.vector_memory import ArrowStorage as ArrowStorage
    from aios.store.convert import ModelConverter as ModelConverter
    from aios.store.quant import ArrowQuant as ArrowQuant
    from aios.store.weights import WeightLoader as WeightLoader

__version__ = "0.1.0"

_HOMES = {
    "ArrowEngine": "aios.engine.arrow",
    "ArrowQuant": "aios.store.quant",
    "ArrowStorage": "aios.memory.vector_memory",
    "FastTokenizer": "aios.text.vocabulary",
    "VectorSearch": "aios.memory.vector_index:VectorIndex",
    "hookimpl": "aios.hookspecs",
    "Client": "aios.ipc.client",
    "AsyncClient": "aios.ipc.client",
    "connect": "aios.ipc.client",
    "connect_async": "aios.ipc.client",
    "ModelConverter": "aios.store.convert",
    "WeightLoader": "aios.store.weights",
}
__all__ = ["ArrowEngine", "ArrowQuant", "ArrowStorage", "AsyncClient", "Client", "FastTokenizer", "ModelConverter",
           "VectorSearch", "WeightLoader", "__version__", "connect", "connect_async", "hookimpl"]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use (PEP 562), so that `import aios` stays a few milliseconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'aios' has no attribute {name!r}")
    from importlib import import_module

    module, _, inner = _HOMES[name].partition(":")
    value = getattr(import_module(module), inner or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
