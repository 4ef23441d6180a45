"""For every test: torch's threads neither multiply nor spin, however busy the machine is."""

from __future__ import annotations

import os

# Read by OpenMP when torch is imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
