"""Kernels on a CUDA device: timed as a replayed graph, by the device's own clock.

Launched one by one, a short kernel takes as long as Python needs to ask for it. And on the same
tensors again and again it finds its inputs in the L2 cache, as no step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from synthesis_kernels.step import CaptureFailed, record, warm_up

Work = Callable[[], object]

MOST_COPIES = 100
"""Of a piece of work; one that needs more of them to fill the cache is timed in the cache."""
LONG_ENOUGH_MS = 20.0
"""Milliseconds of replays that the device's clock is asked for."""


def copies_past_cache(cache: int, size: int) -> int:
    """How many copies of work on `size` bytes fill a cache of so many bytes twice."""
    return min(MOST_COPIES, max(1, -(-2 * cache // max(size, 1))))


class Replays:
    """The same work on several sets of tensors, one after the other, as one graph.

    What can't be captured is launched one by one, and `problem` says why.
    """

    def __init__(self, copies: Sequence[Work]) -> None:
        self.copies = copies
        self.problem: str | None = None
        self._replay: Callable[[], object] = self._run
        warm_up(self._run)
        try:
            # Results have places of their own as long as all are kept.
            graph, self.results = record(self._run)
            self._replay = graph.replay
        except CaptureFailed as failed:
            self.problem = failed.why

    def __call__(self) -> None:
        self._replay()

    def _run(self) -> list[object]:
        return [work() for work in self.copies]

    def seconds(self) -> float:
        """Of one copy's work, over as many replays as the clock can tell."""
        replays = 1
        while True:
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(replays):
                self._replay()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end)
            if elapsed >= LONG_ENOUGH_MS:
                return elapsed / 1e3 / replays / len(self.copies)
            replays *= 2
