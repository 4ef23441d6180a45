"""For plugin authors: a daemon in memory, a head that always says the same, and the laws a head must keep.

    from aios.testing import broken_laws, load, memory_daemon

    PLUGIN = load(Path(__file__).parents[1])

    def test_it_answers() -> None:
        with memory_daemon(plugins=[PLUGIN]) as daemon:
            assert daemon.diffuse("print((1", modality="code", seed=1).text == "))"

    def test_its_heads_keep_the_laws() -> None:
        assert broken_laws(PLUGIN) == []
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aios.testing.daemon import MemoryDaemon as MemoryDaemon
    from aios.testing.daemon import memory_daemon as memory_daemon
    from aios.testing.fake import FakeHead as FakeHead
    from aios.testing.fake import FakePlugin as FakePlugin
    from aios.testing.laws import Finding as Finding
    from aios.testing.laws import broken_laws as broken_laws
    from aios.testing.laws import judge as judge
    from aios.testing.plugin import LoadedPlugin as LoadedPlugin
    from aios.testing.plugin import load as load

_HOMES = {"MemoryDaemon": "daemon", "memory_daemon": "daemon", "FakeHead": "fake", "FakePlugin": "fake",
          "Finding": "laws", "broken_laws": "laws", "judge": "laws", "LoadedPlugin": "plugin", "load": "plugin"}
__all__ = ["FakeHead", "FakePlugin", "Finding", "LoadedPlugin", "MemoryDaemon", "broken_laws", "judge", "load",
           "memory_daemon"]


def __getattr__(name: str) -> Any:
    """Imported on first use (PEP 562): what fails before torch is needed fails in a moment."""
    if name not in _HOMES:
        raise AttributeError(f"module 'aios.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"aios.testing.{_HOMES[name]}"), name)
