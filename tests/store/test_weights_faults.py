"""What goes wrong from outside: files truncated while mapped, other people's signals, kill -9 in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

# None of the programs imports torch: the map is touched through the buffer itself.
WRITE = """
import faulthandler, os, signal, sys, threading
from pathlib import Path
from aios.errors import ModelCorrupt
from aios.store.weights import WeightLoader, WeightWriter
path = Path(sys.argv[1])
with WeightWriter(path) as writer:
    for name, size in (("first", 8000), ("last", 4_000_000)):
        writer.begin(name, "u8", (size,))
        writer.write("data", b"x" * size)
        writer.end()
    writer.finish(spec={"model_type": "llama"}, card="", tokenizer_sha256="")
"""
TRUNCATE = """
os.truncate(path, 4096)
"""
TOUCH = """
threads = [threading.Thread(target=lambda: bytes(last)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert bytes(last[-10:]) == bytes(10)
last[:] = b"y" * len(last)
try:
    loader.intact(wait=False)
except ModelCorrupt as error:
    assert "truncated to 4096 of" in error.message and error.message.startswith("model.parquet: "), error.message
    assert "torch" not in sys.modules
    print("said so")
"""


def run(path: Path, *program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "".join(program), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("handler", ["before", "after", "none"])
def test_a_file_truncated_while_mapped_is_a_clear_error_of_that_file(tmp_path: Path, handler: str) -> None:
    enable = "faulthandler.enable()\n"
    done = run(tmp_path / "model.parquet", WRITE, enable if handler == "before" else "",
               'loader = WeightLoader.open(path, check="none")\nlast = loader.packed_bytes("last")\n',
               enable if handler == "after" else "", TRUNCATE, TOUCH)
    assert (done.returncode, done.stdout) == (0, "said so\n"), done.stderr


def test_the_background_check_too_survives_a_truncation(tmp_path: Path) -> None:
    done = run(tmp_path / "model.parquet", WRITE, "loader = WeightLoader.open(path)\n", TRUNCATE, """
try:
    bytes(loader.packed_bytes("last"))
    loader.intact(wait=True)
except ModelCorrupt as error:
    assert "truncated" in error.message, error.message
    print("said so")
""")
    assert (done.returncode, done.stdout) == (0, "said so\n"), done.stderr


@pytest.mark.parametrize("handler", ["before", "after", "both", "none"])
@pytest.mark.parametrize("raised", [
    "signal.raise_signal(signal.SIGBUS)", "os.kill(os.getpid(), signal.SIGBUS)",
    """
import mmap
with open(path, "r+b") as file:
    foreign = mmap.mmap(file.fileno(), 0)
    os.truncate(path, 0)
    foreign[-1]
"""], ids=["raised", "sent", "another map"])
def test_a_bus_error_that_is_not_ours_still_kills(tmp_path: Path, handler: str, raised: str) -> None:
    enable = "faulthandler.enable()\n"
    other = 'path.with_name("ours").write_bytes(path.read_bytes())\n'   # the map that is ours stays whole
    done = run(tmp_path / "model.parquet", WRITE, other, enable if handler in ("before", "both") else "",
               'loader = WeightLoader.open(path.with_name("ours"))\nloader.intact(wait=True)\n',
               enable if handler in ("after", "both") else "", raised, "\nprint('survived')")
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert not done.stdout
    assert ("Bus error" in done.stderr) == (handler != "none")


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from aios.store.weights import WeightWriter
path, stop = Path(sys.argv[1]), {stop}
writer = WeightWriter(path, source="model 1")
print(sorted(writer.done))
for index in range(5):
    if index == stop:
        writer.begin("torn", "f32", (1000,))
        writer.write("data", b"x" * 2000)
        os.kill(os.getpid(), signal.SIGKILL)
    if f"t{{index}}" not in writer.done:
        writer.begin(f"t{{index}}", "u8", (4000,))
        writer.write("data", bytes([index]) * 4000)
        writer.end()
writer.finish(spec={{"model_type": "llama"}}, card="", tokenizer_sha256="")
"""


def test_a_killed_writer_is_resumed_to_the_very_same_bytes(tmp_path: Path) -> None:
    straight, broken = tmp_path / "a" / "model.parquet", tmp_path / "b" / "model.parquet"
    straight.parent.mkdir()
    broken.parent.mkdir()
    assert run(straight, INTERRUPTED.format(stop=None)).returncode == 0
    for stop in (2, 4):
        assert run(broken, INTERRUPTED.format(stop=stop)).returncode == -signal.SIGKILL
        assert not broken.exists()
    done = run(broken, INTERRUPTED.format(stop=None))
    assert (done.returncode, done.stdout) == (0, "['t0', 't1', 't2', 't3']\n"), done.stderr
    assert broken.read_bytes() == straight.read_bytes()
    assert [file.name for file in broken.parent.iterdir()] == ["model.parquet"]
