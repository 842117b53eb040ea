"""Several shards on one device: their calls are made together, with one pass of the teacher in each
inner step; what else a shard does, it does in its turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from inversion.parts.call import Made, begin_call, end_call
from inversion.parts.inner_step import InnerStep
from inversion.parts.progress import StepResult, Stopwatch
from synthesis_kernels.backend import random_apart

if TYPE_CHECKING:
    from inversion.parts.matching import Matching


class Turns:
    """torch's own random numbers, as one shard draws them: in a turn they go on where its last one
    ended. Dropout in an adversary draws from them; everything else has a generator of its own.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._devices = [torch.cuda.current_device()] if device.type == "cuda" else []
        with random_apart(seed, device):
            self._take()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, the numbers are this shard's; after it they are as they were."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._state)
            for device, state in zip(self._devices, self._device_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._take()

    def _take(self) -> None:
        self._state = torch.get_rng_state()
        self._device_states = [torch.cuda.get_rng_state(device) for device in self._devices]


class Abreast:
    """The next calls of several shards, which a recipe that matches BatchNorm statistics makes."""

    def __init__(self, shards: Sequence[Matching], turns: Sequence[Turns]) -> None:
        self.shards = shards
        self.turns = turns
        self.options = shards[0].options
        self.inner = InnerStep([shard.inner for shard in shards])

    def step(self) -> list[StepResult]:
        """One call of each. A shard's seconds are its share of the time that all take."""
        began = time.perf_counter()
        watch = Stopwatch(self.shards[0].machine.device)
        batches = self._generate()
        watch.mark()
        figures = []
        for shard, made, turns in zip(self.shards, batches, self.turns, strict=True):
            with turns.turn():
                figures.append(shard.take(made))
        # Only now the device is waited for.
        told = [shard.read_back(each) for shard, each in zip(self.shards, figures, strict=True)]
        count = len(self.shards)
        elapsed = (time.perf_counter() - began) / count
        generating = watch.seconds()[0] / count
        return [
            shard.report(*each, elapsed, generating)
            for shard, each in zip(self.shards, told, strict=True)
        ]

    def _generate(self) -> list[Made]:
        """Every shard's batch."""
        options = self.options
        given = [(shard.inner, shard.teacher, shard.state, options) for shard in self.shards]
        calls = [begin_call(*each) for each in given]
        for step in range(options.generator.inner_steps):
            results = self.inner([call.request(step) for call in calls])
        ended = zip(given, calls, results, strict=True)
        return [end_call(*each, call, result) for each, call, result in ended]
