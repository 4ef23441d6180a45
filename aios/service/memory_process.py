"""The memory process: the store of memories and its index, one writer, no torch.

The main thread only passes on: one thread answers questions, one writes, so that nobody who asks waits for a disk and
what waits for it meanwhile is written together with one sync, and one reads page by page. Started as
`python -m aios.service.memory_process --channel FD --pulse FD --parent PID`; it ends when the channel or the parent
ends, and saves its index first.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from aios.errors import (
    AiosError,
    BadInput,
    Cancelled,
    EncoderChanged,
    Internal,
    LimitExceeded,
    MemoryStopped,
    ProtocolError,
)
from aios.ipc import stream
from aios.memory.conditioner import MemoryConditioner
from aios.memory.keeper import Keeper, conditions
from aios.memory.record import NewMemory
from aios.messages import Forget, ListMemories, MemoryDraft, MemoryPage, Recall, Remember, from_wire, to_wire
from aios.service import child
from aios.service.lane import Lane, Task
from aios.service.pulse import Pulse

OOM_SCORE: Final = 200               # the model worker goes first, the daemon last
TOGETHER_MAX: Final = 256            # memories that share a sync: a graph takes them in in a tenth of a second
BEAT_S: Final = 1.0                  # while other threads work
QUIET_S: Final = 30.0                # without a change, before the index is saved
UNSAVED_MAX: Final = 5000            # memories that a process put into its index in a second or two
SWITCH_S: Final = 0.0005             # of the interpreter: a question waits no longer for a thread that seals


class MemoryProcess:
    """The keeper of the store, the channel to the parent, and the threads between them."""

    def __init__(self, channel: socket.socket, pulse: Pulse) -> None:
        self._channel, self._pulse = channel, pulse
        self._framer = stream.Framer()
        self._sending = threading.Lock()
        self._keeper: Keeper | None = None
        self._conditioner: MemoryConditioner | None = None
        self._unsaved = 0                                # memories that the saved index lacks; forgotten ones count all
        self._changed_at = 0.0
        asker = Lane("asker", self._ask)
        writer = Lane("writer", self._write, together=_may_join)
        reader = Lane("reader", self._ask)
        self._lanes = {"asker": asker, "writer": writer, "reader": reader}
        self._verbs: dict[str, tuple[Lane, Callable[[dict[str, Any]], Any]]] = {
            "setup": (asker, self._setup), "reload": (asker, self._setup), "unlock": (asker, self._unlock),
            "encoder": (asker, self._encoder), "recall": (asker, self._recall), "stats": (asker, self._stats),
            "lend": (asker, self._lend),
            "list": (reader, self._list), "remember": (writer, self._remember), "forget": (writer, self._forget),
            "compact": (writer, self._compact), "save": (writer, self._save)}

    def run(self) -> None:
        """Serve until the parent closes the channel, then finish and save."""
        while self._receive():
            pass
        for lane in self._lanes.values():
            lane.close()
        if self._keeper is not None:
            self._keeper.close()

    def _receive(self) -> bool:
        """Wait for what the parent sends and pass it on; False at the end."""
        busy = [number for lane in self._lanes.values() for number in lane.numbers if number]
        self._pulse.beat("request:" + ",".join(map(str, busy)) if busy else "idle")
        working = self._unsaved >= UNSAVED_MAX or any(lane.busy for lane in self._lanes.values())
        if not select.select([self._channel], [], [], BEAT_S if working else None)[0]:
            self._save_when_quiet()
            return True
        data = self._channel.recv(stream.CHUNK_BYTES)
        for message in self._framer.feed(data):
            if isinstance(message, stream.Notification) and message.method == "cancel":
                self._cancel(int(message.params[0]))
            elif isinstance(message, stream.Request):
                lane, _ = self._verbs[message.verb]
                lane.put(Task(number=message.msgid, verb=message.verb, params=message.params[0]))
        return bool(data)

    def _save_when_quiet(self) -> None:
        """After a pause, so that a process that is killed need not make a large index anew."""
        writer = self._lanes["writer"]
        if self._unsaved >= UNSAVED_MAX and not writer.busy and time.monotonic() - self._changed_at > QUIET_S:
            writer.put(Task(number=0, verb="save", params={}))

    def _ask(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            _, work = self._verbs[task.verb]
            self._do(task.number, task.verb, partial(work, task.params))

    def _do(self, number: int, verb: str, work: Callable[[], Any]) -> None:
        try:
            result = work()
        except MemoryStopped as error:
            self._answer(number, MemoryStopped(error.message, remedy="look at the disk, then: aios restart"))
        except AiosError as error:
            self._answer(number, error)
        except Exception as error:     # the boundary of the process: the request fails, the store lives on
            self._answer(number, self._defect(verb, error))
        else:
            self._answer(number, None, result)

    def _setup(self, params: dict[str, Any]) -> None:
        if self._keeper is None:
            self._keeper = Keeper(Path(params["folder"]), key=params["key"], encrypts=params["encrypts"],
                                  passphrase=params.get("passphrase"))

    def _unlock(self, params: dict[str, Any]) -> None:
        self._kept.unlock(str(params["passphrase"]))

    def _encoder(self, params: dict[str, Any]) -> None:
        self._kept.introduce(str(params["release"]), str(params["model"]), _floats(params["anchor"]))

    def _stats(self, params: dict[str, Any]) -> Any:
        store = self._kept.store()
        return to_wire(store.stats()) if store is not None else None

    def _recall(self, params: dict[str, Any]) -> Any:
        asked = from_wire(params["request"], Recall)
        if (store := self._kept.store()) is None:
            return []
        self._kept.check_encoder(params.get("release"))
        assert asked.vector is not None
        return to_wire(store.recall(_floats(asked.vector), asked.k, conditions(asked.filter)))

    def _lend(self, params: dict[str, Any]) -> Any:
        """What a request takes along: the memories that matter for it, with their patterns."""
        if (store := self._kept.store()) is None:
            return []
        self._kept.check_encoder(params.get("release"))
        if self._conditioner is None:
            self._conditioner = MemoryConditioner(store)
        asked = params["request"]
        return to_wire(self._conditioner.passages(asked["query"], vector=_floats(asked["vector"]), k=asked["k"]))

    def _list(self, params: dict[str, Any]) -> Any:
        store, asked = self._kept.store(), from_wire(params["request"], ListMemories)
        return to_wire(MemoryPage(memories=(), total=0) if store is None else store.page(asked))

    def _write(self, tasks: Sequence[Task]) -> None:
        """Change the store, answer, then bring the index up to it while nobody waits."""
        self._commit(tasks)
        self._do(0, "settle", self._settle)

    def _commit(self, tasks: Sequence[Task]) -> None:
        """One change, or several that keep memories, with one sync."""
        if len(tasks) > 1:
            try:
                groups = [self._drafts(task.params) for task in tasks]
                ids = iter(self._kept.open().remember_many([one for group in groups for one in group]))
            except (BadInput, EncoderChanged):
                pass            # nothing was written, and one of them is to blame: each by itself
            except Exception as error:
                fault = error if isinstance(error, AiosError) else self._defect("remember", error)
                for task in tasks:
                    self._answer(task.number, fault)
                return
            else:
                self._changed(sum(map(len, groups)))
                for task, group in zip(tasks, groups, strict=True):
                    self._answer(task.number, None, [next(ids) for _ in group])
                return
        self._ask(tasks)

    def _remember(self, params: dict[str, Any]) -> list[int]:
        drafts = self._drafts(params)
        once = bool(params["request"].get("once"))
        ids = self._kept.remember_once(drafts) if once else self._kept.open().remember_many(drafts)
        self._changed(len(ids))
        return ids

    def _forget(self, params: dict[str, Any]) -> list[int]:
        asked = from_wire(params["request"], Forget)
        if (store := self._kept.store()) is None:
            return []
        filter = None if asked.filter is None else conditions(asked.filter)
        gone = store.forget(filter or list(asked.ids))
        if gone:
            self._changed(store.stats().memories)       # the saved index went with them
        return gone

    def _compact(self, params: dict[str, Any]) -> bool:
        store = self._kept.store()
        return store is not None and store.compact()

    def _save(self, params: dict[str, Any]) -> None:
        self._unsaved = 0
        if (store := self._kept.store()) is not None:
            store.flush()

    def _settle(self) -> None:
        if (store := self._kept.store()) is not None:
            store.settle()

    def _changed(self, count: int) -> None:
        self._unsaved, self._changed_at = self._unsaved + count, time.monotonic()

    def _drafts(self, params: dict[str, Any]) -> list[NewMemory]:
        """What is to be kept; raises BadInput, or EncoderChanged where the parent must introduce its encoder."""
        asked = from_wire(params["request"], Remember)
        self._kept.open(dim=len(asked.memories[0].vector or b"") // 4)
        self._kept.check_encoder(params.get("release"))
        return [_new(draft) for draft in asked.memories]

    @property
    def _kept(self) -> Keeper:
        assert self._keeper is not None, "the parent sets up first"
        return self._keeper

    def _cancel(self, number: int) -> None:
        """What was begun is finished; what was not is let go of."""
        if any(lane.drop(number) for lane in self._lanes.values()):
            self._answer(number, Cancelled("the request was cancelled"))

    def _defect(self, what: str, error: BaseException) -> AiosError:
        trace = "".join(traceback.format_exception(error))[-1900:]
        self._send(stream.Notification(method="log", params=[{"event": "memory.defect", "what": what, "trace": trace}]))
        return Internal(f"{what} failed inside the memory process: {type(error).__name__}",
                        remedy="`aios logs` has the details; please report them")

    def _answer(self, number: int, error: AiosError | None, result: Any = None) -> None:
        if not number:
            return              # what we asked ourselves
        try:
            self._send(stream.Response(msgid=number, error=error.to_wire() if error else None, result=result))
        except LimitExceeded:
            fault = LimitExceeded("the memories found do not fit one answer", remedy="ask for fewer (k, limit)")
            self._send(stream.Response(msgid=number, error=fault.to_wire(), result=None))

    def _send(self, message: stream.Message) -> None:
        frame = stream.encode(message)
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):    # nobody listens any more
            self._channel.sendall(frame)


def _may_join(tasks: Sequence[Task], task: Task) -> bool:
    """Whether a task is written together with those before it: memories are, unless they are looked up first."""
    every = (*tasks, task)
    return all(one.verb == "remember" and not one.params["request"].get("once") for one in every) \
        and sum(len(one.params["request"]["memories"]) for one in every) <= TOGETHER_MAX


def _new(draft: MemoryDraft) -> NewMemory:
    if draft.vector is None:
        raise BadInput("a memory came without a vector", remedy="let the daemon encode it")
    return NewMemory(text=draft.text, metadata=draft.metadata, vector=_floats(draft.vector), tags=draft.tags,
                     namespace=draft.namespace, time=draft.time, source=draft.source, provenance=draft.provenance)


def _floats(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(data, "<f4")


def main(arguments: list[str] | None = None) -> int:
    """Become the memory process of the parent."""
    if (given := child.begin("aios.service.memory_process", arguments, oom_score=OOM_SCORE)) is None:
        return 0
    sys.setswitchinterval(SWITCH_S)
    try:
        MemoryProcess(given.channel, given.pulse).run()
    except ConnectionResetError:
        return 0
    except ProtocolError as error:
        print(f"the parent sent what cannot be read: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)      # the store is closed: nothing is left to be done
