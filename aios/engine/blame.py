"""Whose fault it was: whatever a plugin's code raises becomes a PluginError that names the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aios.errors import AiosError, ModelError, PluginError
from aios.registry.reason import describe

ALLOCATION_FAILED = "can't allocate memory"   # torch tells it from other RuntimeErrors by this text alone


@contextmanager
def blame(plugin: str, doing: str) -> Iterator[None]:
    """Run a plugin's code, `doing` says what for; errors that AIOS defines pass through as they are.

    Raises PluginError with `details["plugin"]` for everything else, even SystemExit and the panics of Rust code.
    """
    try:
        yield
    except (AiosError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        said = describe(error)
        if isinstance(error, MemoryError) or ALLOCATION_FAILED in said:
            raise ModelError("there is not enough free memory for this request",
                             remedy="ask for a shorter length, or free memory") from error
        raise PluginError(f"plugin {plugin} failed while {doing}: {said}", plugin=plugin,
                          reason=f"plugin failed while {doing}: {said}",
                          remedy=f"aios plugins show {plugin}") from error
