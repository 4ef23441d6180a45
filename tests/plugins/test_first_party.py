from __future__ import annotations

from pathlib import Path

import pytest

from aios.registry.discovery import first_party_folder
from aios.testing import judge, load

FOLDER = first_party_folder()
PLUGINS = sorted(path.parent for path in FOLDER.glob("*/plugin.toml")) if FOLDER is not None else []


def test_there_are_first_party_plugins() -> None:
    assert "text_head" in {path.name for path in PLUGINS}


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_every_head_that_ships_keeps_every_law(folder: Path) -> None:
    findings = judge(load(folder))
    assert [finding for finding in findings if not finding.ok] == []
    assert findings
