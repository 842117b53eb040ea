"""How often a loop does what takes time beside its steps: saving, drawing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Every:
    """True at most once in `seconds`, and where it is told what that costs, so seldom that the cost
    is a small share of the time. Decides when to save or draw, never what is computed.
    """

    SHARE = 0.02
    """Of the time, that may be paid."""
    LONGEST = 300.0
    """Seconds to wait at most, whatever it costs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.wait = seconds
        self.last = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self.last < self.wait:
            return False
        self.last = time.monotonic()
        return True

    @contextmanager
    def paying(self) -> Iterator[None]:
        """Around what is done when it is due."""
        began = time.monotonic()
        yield
        self.last = time.monotonic()
        paid = self.last - began
        self.wait = max(self.seconds, min(paid / self.SHARE, self.LONGEST))
