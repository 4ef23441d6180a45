"""`python -m aios` is `aios`."""

from __future__ import annotations

import sys

from aios.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
