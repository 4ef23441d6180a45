"""The hooks a plugin may implement: each function's docstring is its contract.

A plugin is a package; it marks functions of these names with `@hookimpl`, brings only those it needs, and
may leave out arguments it does not use. Hooks are called in the model worker, never inside the sampling loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from aios.contracts import Head
    from aios.messages import Request, Response

PROJECT = "aios"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def aios_heads() -> list[Head]:  # type: ignore[empty-body]
    """Return the modality heads this plugin brings; called once, when the plugin is loaded."""


@hookspec(firstresult=True)
def aios_route(request: Request) -> Request | None:
    """Return the request to serve in place of this one (another model, sampler or length), or None to leave it.

    The first plugin that returns a request decides. The kind of request cannot be changed.
    """


@hookspec
def aios_response_ready(request: Request, response: Response) -> None:
    """Take note of a finished answer; what is returned is ignored, nothing can be changed any more."""
