"""Speaks the worker's side of the channel without an engine; the prompt says what shall happen.

die: end by SIGKILL. hang: never answer. slow: answer after 40 steps of 40 ms, cancellable. A text to encode becomes the
sum of its words' vectors, of 16 numbers; AIOS_FAKE_ENCODER is the seed of these, and the encoder's release.
Everything else is echoed. A plugin called "hangs" does so when it is loaded. With AIOS_FAKE_WORKER=broken it
ends before it is set up.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import sys
import time
from array import array
from typing import Any

from aios.ipc.stream import Framer, Notification, Request, Response, encode
from aios.service.pulse import Pulse


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[sys.argv.index("--channel") + 1]))
    pulse = Pulse(int(sys.argv[sys.argv.index("--pulse") + 1]))
    if os.environ.get("AIOS_FAKE_WORKER") == "broken":
        os._exit(3)
    framer, slow = Framer(), dict[int, int]()
    while True:
        pulse.beat("request:" + ",".join(map(str, slow)) if slow else "idle")
        if select.select([channel], [], [], 0.04 if slow else None)[0]:
            data = channel.recv(1 << 16)
            if not data:
                return
            for message in framer.feed(data):
                if isinstance(message, Notification):
                    if slow.pop(message.params[0], None) is not None:
                        channel.sendall(answer(message.params[0], None, error=["request.cancelled", "cancelled"]))
                elif isinstance(message, Request):
                    take(message, channel, pulse, slow)
        for number in list(slow):
            slow[number] += 1
            channel.sendall(encode(Notification(method="state", params=[number, {"step": slow[number], "steps": 40}])))
            if slow[number] == 40:
                del slow[number]
                channel.sendall(answer(number, {"usage": {}}))


def take(message: Request, channel: socket.socket, pulse: Pulse, slow: dict[int, int]) -> None:
    given: dict[str, Any] = message.params[0]
    if message.verb in ("setup", "reload"):
        if given["plugins"] == ["hangs"]:
            pulse.beat("plugin:hangs")
            time.sleep(600)
        channel.sendall(encode(Notification(method="plugins", params=[{"active": {"p": "h"}}])))
        channel.sendall(answer(message.msgid, {}))
        return
    pulse.beat(f"request:{message.msgid}")
    if message.verb == "encode":
        channel.sendall(answer(message.msgid, encoded(given["request"]["texts"])))
        return
    prompt = given["request"].get("prompt", "")
    if prompt.startswith("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if prompt.startswith("hang"):
        time.sleep(600)
    if prompt.startswith("slow"):
        slow[message.msgid] = 0
    else:
        channel.sendall(answer(message.msgid, {"echo": prompt, "alone": given["alone"], "usage": {},
                                               "pid": os.getpid(), "request": given["request"]}))


def encoded(texts: list[str]) -> Any:
    """A Response as the engine gives it."""
    release = os.environ.get("AIOS_FAKE_ENCODER", "first")
    rows = []
    for text in texts:
        words = [word.strip(".,?") for word in text.lower().split()] or [""]
        draws = [random.Random(f"{release} {word}") for word in words]
        rows += [sum(draw.gauss(0, 1) for draw in draws) for _ in range(16)]
    return {"parts": [{"mime": f"application/x;shape={len(texts)},16", "data": array("f", rows).tobytes()}],
            "modality": ["text"], "usage": {}, "verdict": {"model": f"fake-{release}", "release": release}}


def answer(number: int, result: Any, error: Any = None) -> bytes:
    return encode(Response(msgid=number, error=error, result=result))


if __name__ == "__main__":
    main()
