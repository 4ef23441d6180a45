"""How a process of ours begins: it dies with its parent, before its parent when memory runs out, by its word only."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from aios.service.pulse import Pulse

PR_SET_PDEATHSIG = 1      # prctl(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """What the parent handed over."""

    channel: socket.socket
    pulse: Pulse


def begin(program: str, arguments: list[str] | None, *, oom_score: int) -> Inherited | None:
    """Read `--channel FD --pulse FD --parent PID` and become that parent's child; None when it is gone already.

    oom_score: from 0 to 1000, how soon the kernel takes this process when memory runs out.
    """
    parser = argparse.ArgumentParser(prog=program)
    for name in ("--channel", "--pulse", "--parent"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the daemon, which then tells us
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != given.parent:
        return None     # it died before prctl and left a setup in the channel: not worth loading anything for
    with contextlib.suppress(OSError):                  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text(str(oom_score))
    faulthandler.enable()
    for descriptor in (given.channel, given.pulse):
        os.set_inheritable(descriptor, False)
    return Inherited(channel=socket.socket(fileno=given.channel), pulse=Pulse(given.pulse))
