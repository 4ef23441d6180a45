"""What plugins do wrong in a real daemon: it lives on, the other plugins answer, and the reason can be read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.errors import ModelError, NoHead, PluginError
from aios.ipc.client import Client
from aios.lab.scratch_home import ScratchDaemon
from aios.registry.scaffold import write_plugin

PROMPT, ANSWER = "print(max([1, 2", "]))"


@pytest.fixture
def scratch() -> Iterator[ScratchDaemon]:
    """A home with the plugin that `aios plugins new` writes; its daemon is ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        daemon = ScratchDaemon(Path(folder) / "home")
        write_plugin("closer", daemon.places.plugins)
        daemon.places.config_file.write_text("[daemon]\nwatch = false\n")
        try:
            yield daemon
        finally:
            daemon.end()


def write(daemon: ScratchDaemon, name: str, code: str) -> None:
    """The closer under another name and for sound instead of code, with `code` at its end."""
    source = write_plugin(name, daemon.places.plugins) / "__init__.py"
    text = source.read_text().replace("Modality.CODE", "Modality.AUDIO").replace('"code"', '"audio"')
    source.write_text(f"{text}\n\n{code}\n")


def allow(client: Client, name: str) -> str:
    shown = client.call("plugins.allow", name=name)
    return str(client.call("plugins.allow", name=name, confirm=shown["hash"])["state"])


def states(client: Client) -> dict[str, str]:
    return {one["name"]: one["state"] for one in client.call("plugins.list") if one["source"] == "user"}


def closed(client: Client) -> bool:
    """Whether the plugin `closer` answers for code; without it the embedded model may."""
    try:
        return client.diffuse(PROMPT, modality="code", length=4).verdict.plugin == "closer"
    except (ModelError, NoHead):
        return False


def reason(client: Client, name: str) -> str:
    return str(client.call("plugins.show", name=name)["reason"])


def test_the_daemon_and_the_other_plugins_outlive_what_a_plugin_does(scratch: ScratchDaemon) -> None:
    write(scratch, "raising", "raise ValueError('not today')")
    write(scratch, "dying", "import os\nos.kill(os.getpid(), 11)")
    write(scratch, "failing", "del PAIRS")
    scratch.start()
    pid = scratch.pid
    with scratch.connect() as client:
        assert states(client) == dict.fromkeys(("closer", "dying", "failing", "raising"), "not-allowed")
        assert not closed(client)
        allow(client, "closer")
        assert client.diffuse(PROMPT, modality="code").text == ANSWER

        assert allow(client, "raising") == "quarantined"
        assert reason(client, "raising") == "plugin failed at import: ValueError: not today"
        assert client.diffuse(PROMPT, modality="code").text == ANSWER

        allow(client, "dying")
        assert client.diffuse(PROMPT, modality="code").text == ANSWER
        assert states(client)["dying"] == "quarantined"
        assert "SIGSEGV" in reason(client, "dying")

        allow(client, "failing")
        with pytest.raises(PluginError, match="failing failed while denoising: NameError"):
            client.diffuse(PROMPT, modality="audio")
        with pytest.raises(NoHead):
            client.diffuse(PROMPT, modality="audio")
        assert "NameError" in reason(client, "failing")
        assert client.diffuse(PROMPT, modality="code").text == ANSWER
        assert states(client) == {"closer": "active", **dict.fromkeys(("dying", "failing", "raising"), "quarantined")}
        assert client.status().pid == pid


def test_permission_ends_with_a_change_and_a_repair_ends_quarantine(scratch: ScratchDaemon) -> None:
    scratch.start()
    source = scratch.places.plugins / "closer" / "__init__.py"
    good = source.read_text()
    with scratch.connect() as client:
        allow(client, "closer")
        assert client.diffuse(PROMPT, modality="code").text == ANSWER
        source.write_text(good + "\nraise RuntimeError('spoilt')\n")
        client.call("plugins.reload")
        assert states(client) == {"closer": "changed"}
        assert not closed(client)
        assert allow(client, "closer") == "quarantined"
        source.write_text(good)
        allow(client, "closer")
        assert client.diffuse(PROMPT, modality="code").text == ANSWER
        assert states(client) == {"closer": "active"}
