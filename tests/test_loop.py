"""The loop's stops and saves."""

import signal
import sys
from itertools import pairwise

import pytest

from distill.loop import StopFlag
from distill.pacing import Every


def test_a_stop_is_heard_though_nobody_reads_what_is_said_of_it(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with StopFlag() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.raised
    print("said to nobody", file=sys.stderr, flush=True)


@pytest.fixture
def heeds_ctrl_c():
    """As at a terminal: a shell has what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_does_not_end_what_is_saving(first):
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert stop.raised
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_dear_to_save_is_saved_seldom(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("distill.loop.time.monotonic", lambda: clock[0])
    due, saved = Every(20), []
    for cost, end in (
        (1.0, 400),
        (0.1, 800),
    ):  # 2 %: one second in fifty, and never oftener than asked for
        while clock[0] < end:
            clock[0] += 5
            if due():
                with due.paying():
                    clock[0] += cost
                saved.append(clock[0])
    apart = [round(b - a) for a, b in pairwise(saved)]
    assert saved[0] == 21 and min(apart) >= 20
    assert max(apart) <= 60 and apart[1] >= 50 and apart[-1] <= 25
    with due.paying():
        clock[0] += 1000  # one bad moment
    clock[0] += 300
    assert due()
