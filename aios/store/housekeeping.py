"""`python -m aios.store.housekeeping`: verify every model against its record and remove leftovers.

Runs in a process of its own, so that hashing neither blocks nor fattens the daemon; prints one JSON object.
"""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

from aios.config import Places
from aios.errors import AiosError
from aios.store.models import IMPORTING, listing, locked, sweep
from aios.store.pull import PARTIAL
from aios.store.record import verify

LEFTOVER_AGE_S = 24 * 3600.0   # an interrupted pull may be looked at, an import gone on with, for a day


def housekeep(places: Places) -> dict[str, Any]:
    """{"models": {name: null or what is wrong}, "removed": [leftovers]}."""
    models: dict[str, str | None] = {}
    for line in listing(places):
        models[line.name] = line.problem
        if line.record is not None:
            try:
                verify(line.record)
            except AiosError as error:
                models[line.name] = error.message
    with locked(places):   # waits for a running pull: what lies about after it is nobody's
        removed = sweep(places)
        for left in (*sorted(places.models.glob(IMPORTING + "*")),
                     *sorted((places.cache / "archives").glob(PARTIAL + "*"))):
            if time.time() - left.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(left, ignore_errors=True)
                removed.append(left.name)
    return {"models": models, "removed": removed}


def main() -> int:
    """Print the findings; exit code 1 when a model is broken."""
    findings = housekeep(Places.find())
    print(json.dumps(findings))
    return int(any(problem is not None for problem in findings["models"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
