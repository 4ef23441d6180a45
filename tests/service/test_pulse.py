from __future__ import annotations

import os
import threading
import time

from aios.service.pulse import LABEL_BYTES_MAX, Pulse


def test_the_other_side_reads_the_last_beat() -> None:
    ours = Pulse.create()
    theirs = Pulse(os.dup(ours.descriptor))
    theirs.beat("request:17", steps=1)
    beat = ours.read()
    assert (beat.label, beat.steps) == ("request:17", 1)
    assert abs(time.monotonic() - beat.at) < 5
    theirs.beat("idle")
    assert ours.read().label == "idle"
    assert ours.read().steps == 1, "the step count is a sum"
    ours.close()
    theirs.close()


def test_a_label_of_any_length_and_script_is_cut_not_refused() -> None:
    pulse = Pulse.create()
    pulse.beat("é" * 5000)
    assert pulse.read().label.startswith("é" * (LABEL_BYTES_MAX // 2 - 1))
    pulse.close()


def test_a_reader_never_sees_half_a_label() -> None:
    pulse = Pulse.create()
    reader = Pulse(os.dup(pulse.descriptor))
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            pulse.beat("a" * 40)
            pulse.beat("b" * 7)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = {reader.read().label for _ in range(5000)}
    finally:
        done.set()
        thread.join()
    assert seen <= {"start", "a" * 40, "b" * 7}
    pulse.close()
    reader.close()


def test_a_writer_killed_inside_a_write_leaves_something_readable() -> None:
    pulse = Pulse.create()
    pulse.beat("request:3")
    os.pwrite(pulse.descriptor, (7).to_bytes(8, "little"), 0)     # an odd sequence number
    assert pulse.read().label == "request:3"
    pulse.close()
