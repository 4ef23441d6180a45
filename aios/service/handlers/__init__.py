"""What each verb of the daemon does: one small function per verb, one table.

The worker's verbs are not here: the server puts them on the board.
"""

from __future__ import annotations

from aios.service.handlers import control, memory, plugins, session, status, tokens
from aios.service.server import Handler

HANDLERS: dict[str, Handler] = {
    "hello": session.hello,
    "ping": session.ping,
    "api": session.api,
    "cancel": session.cancel,
    "status": status.status,
    "models.ps": status.models_ps,
    "plugins.list": plugins.listing,
    "plugins.show": plugins.show,
    "plugins.allow": plugins.allow,
    "plugins.reload": plugins.reload,
    "memory.remember": memory.remember,
    "memory.recall": memory.recall,
    "memory.forget": memory.forget,
    "memory.list": memory.listing,
    "memory.stats": memory.stats,
    "memory.compact": memory.compact,
    "memory.unlock": memory.unlock,
    "tokens.new": tokens.new,
    "tokens.list": tokens.listing,
    "tokens.revoke": tokens.revoke,
    "reload": control.reload,
    "stop": control.stop,
}
