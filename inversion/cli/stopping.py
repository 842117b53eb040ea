"""Ctrl-C before a verb's own work: one line and status 130, whatever was being imported."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

STOPPED = 130
"""The status of a command that Ctrl-C has ended."""


class Stopping:
    """Ends the process at once on Ctrl-C while modules are imported, which fails in any way where
    it is cut off; at work a Ctrl-C is a KeyboardInterrupt, as usual.

    Where somebody else listens, or Ctrl-C is ignored, it stays so.
    """

    def __init__(self) -> None:
        self.importing = True
        self.asked = False
        """Whether Ctrl-C has come at work."""
        self._listens = False

    def __enter__(self) -> Stopping:
        is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if is_usual and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._stop)
            self._listens = True
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.importing:
            os.write(2, b"echoset: stopped\n")
            os._exit(STOPPED)
        self.asked = True
        raise KeyboardInterrupt
