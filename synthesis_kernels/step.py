"""How a training step runs: eagerly, compiled, or as a captured CUDA graph. All three compute the
same, to rounding.

A step is a function of a few input tensors that reads and changes other tensors in place (weights,
optimiser state) and returns tensors. `compiled` and `Captured` wrap it; `resolve_step` says which
way to go.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from synthesis_kernels.backend import asked_form, free_cycles
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.native import cache_folder, find_compiler, library

Step = Literal["auto", "eager", "compiled", "graph"]
Function = Callable[..., tuple[Tensor, ...]]

GRAPH_EARNS = 50
"""Steps after which a capture (a few eager steps' time) has paid for itself."""


def resolve_step(step: Step, device: torch.device, steps: int) -> Step:
    """`auto` captures a graph on CUDA where the run is long enough, and is eager on a CPU.

    On CPUs `compiled` has not paid: with the native kernels the eager step is at least as fast (see
    `echoset bench`), and starts at once. A way asked for by name that can't run here raises.
    """
    if step == "graph" and device.type != "cuda":
        raise EchosetError(
            "step 'graph' captures a CUDA graph and needs a CUDA device; use --step eager or "
            "compiled"
        )
    if step == "compiled" and device.type == "cpu" and find_compiler() is None:
        raise EchosetError(
            "step 'compiled' needs a C++ compiler (install g++, or set CXX); use --step eager"
        )
    headers = (
        sys.platform == "darwin" or Path(sysconfig.get_path("include"), "Python.h").is_file()
    )  # there torch looks further
    if step == "compiled" and device.type == "cpu" and not headers:
        raise EchosetError(
            "step 'compiled' needs Python's headers (install python3-dev or its like); use --step "
            "eager"
        )
    if step != "auto":
        return step
    return "graph" if device.type == "cuda" and steps >= GRAPH_EARNS else "eager"


def compiled(function: Callable) -> Callable:
    """`torch.compile`, with its files kept between runs and its first call announced."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    if asked_form() in ("auto", "native"):
        library()  # so that it isn't built while torch traces
    fast, first = torch.compile(function, dynamic=False), True

    def call(*inputs: Tensor):  # noqa: ANN202
        nonlocal first
        if not first:
            return fast(*inputs)
        began, first = time.perf_counter(), False
        print(
            "compiling the step (a minute or two the first time, then cached) …",
            file=sys.stderr,
            flush=True,
        )
        out = fast(*inputs)
        print(
            f"compiled forward in {time.perf_counter() - began:.0f} s, backward follows",
            file=sys.stderr,
            flush=True,
        )
        return out

    return call


class Captured:
    """A step as a CUDA graph: inputs are copied to fixed places, then everything runs in one launch
    without the host.

    The first call runs eagerly (optimisers make their state then), the second captures. What a call
    returns is overwritten by the next.
    """

    _stream: torch.cuda.Stream | None = None

    def __init__(self, function: Function, changed: Callable[[], Iterable[Tensor]]) -> None:
        self.function, self.changed = function, changed
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.calls == 1:
            return self.function(*inputs)
        if self.graph is None:
            self._capture(inputs)
        for place, given in zip(self.inputs, inputs, strict=True):
            place.copy_(given)
        self.graph.replay()
        return self.outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Warm up on a side stream, as capture asks, and put back everything the warm-up
        changed.
        """
        free_cycles(inputs[0].device)
        self.inputs = [given.clone() for given in inputs]
        tensors = list(self.changed())
        before = [tensor.detach().clone() for tensor in tensors]
        random = torch.cuda.get_rng_state()
        stream = Captured._stream = (
            Captured._stream or torch.cuda.Stream()
        )  # one for all: libraries keep memory for each
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph):
                self.outputs = self.function(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = str(error).strip().partition("\n")[0]
            raise EchosetError(
                f"this network's step can't be captured as a CUDA graph ({why}); use --step eager"
            ) from error
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
        torch.cuda.set_rng_state(random)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor an optimiser changes: parameters and their state."""
    states = [
        value
        for state in optimiser.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return [p for group in optimiser.param_groups for p in group["params"]] + states
