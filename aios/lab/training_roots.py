"""Where a measurement finds built training data and finished runs, and what the ledger says of either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aios.lab.report import LabOptions, Row
from aios.ledger import Ledger, checkout


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRoots:
    """The folders in which `aios train` may have written: --data (or AIOS_DATA), and `runs` of this checkout."""

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, options: LabOptions) -> TrainingRoots:
        """Those that exist."""
        named = [Path(word) for word in os.environ.get("AIOS_DATA", "").split(os.pathsep) if word]
        root = checkout()
        wanted = [*([options.data] if options.data else named), root / "runs" if root else Path("runs")]
        return cls(folders=tuple(folder for folder in wanted if folder.is_dir()))

    def data(self, recipe: str) -> Path | None:
        """The folder with the built recipe."""
        for folder in (found for root in self.folders for found in (root / "data" / recipe, root / recipe, root)):
            try:
                told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(told, dict) and told.get("recipe") == recipe:
                return folder
        return None

    def runs(self, plan: str) -> Iterator[Path]:
        """The folders of a plan's runs that have weights, by name."""
        for root in self.folders:
            yield from sorted(path.parent for path in (root / plan).glob("*/best.safetensors"))


def config_of(folder: Path) -> dict[str, Any]:
    """What a run computes: its config.json."""
    told: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return told


def recorded(ledger: Ledger, command: str, metric: str, release: str | None = None) -> Row | None:
    """The latest value that a full run of `command` measured for `metric` (on this release), as a row of the ledger."""
    found = None
    for entry in ledger.entries():
        if entry.command == command and not entry.quick and release in (None, *entry.checkpoints.values()):
            for told in entry.rows:
                if told["metric"] == metric and told["value"] is not None and told["kind"] == "live":
                    found = replace(Row.from_json(told), kind="ledger", run=entry.id)
    return found
