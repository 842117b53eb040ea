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
from typing import TypeVar

import torch
from torch import Tensor

from synthesis_kernels.backend import asked_form, free_cycles
from synthesis_kernels.choices import Step
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.native import cache_folder, find_compiler, library

Function = Callable[..., tuple[Tensor, ...]]
Result = TypeVar("Result")

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
    if step == "compiled" and device.type == "cpu":
        _require_compiler()
    if step != "auto":
        return step
    return "graph" if device.type == "cuda" and steps >= GRAPH_EARNS else "eager"


def _require_compiler() -> None:
    """Refuse where torch.compile would find no compiler or no headers for the CPU."""
    if find_compiler() is None:
        raise EchosetError(
            "step 'compiled' needs a C++ compiler (install g++, or set CXX); use --step eager"
        )
    # On macOS torch looks in more places than this one.
    header = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform != "darwin" and not header.is_file():
        raise EchosetError(
            "step 'compiled' needs Python's headers (install python3-dev or its like); use --step "
            "eager"
        )


def compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """`torch.compile`, with its files kept between runs and its first call announced."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    if asked_form() in ("auto", "native"):
        library()  # so that it isn't built while torch traces
    fast = torch.compile(function, dynamic=False)
    is_first = True

    def call(*inputs: Tensor) -> Result:
        nonlocal is_first
        if not is_first:
            return fast(*inputs)
        is_first = False
        _announce("compiling the step (a minute or two the first time, then cached) …")
        began = time.perf_counter()
        result = fast(*inputs)
        seconds = time.perf_counter() - began
        _announce(f"compiled forward in {seconds:.0f} s, backward follows")
        return result

    return call


def _announce(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Captured:
    """A step as a CUDA graph: inputs are copied to fixed places, then everything runs in one launch
    without the host.

    The first call runs eagerly (optimisers make their state then), the second captures. What a call
    returns is overwritten by the next.
    """

    _stream: torch.cuda.Stream | None = None
    """One for all: libraries keep memory for each."""

    def __init__(self, function: Function, changed: Callable[[], Iterable[Tensor]]) -> None:
        self.function = function
        self.changed = changed
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.calls == 1:
            return self.function(*inputs)
        if self.graph is None:
            self.graph = self._capture(inputs)
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        self.graph.replay()
        return self.outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        """The step as a graph; everything that making it changed is put back."""
        free_cycles(inputs[0].device)
        self.inputs = [tensor.clone() for tensor in inputs]
        tensors = list(self.changed())
        before = [tensor.detach().clone() for tensor in tensors]
        random = torch.cuda.get_rng_state()
        self._warm_up()
        graph = self._record()
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
        torch.cuda.set_rng_state(random)
        return graph

    def _warm_up(self) -> None:
        """Run twice on a side stream, as capture asks."""
        if Captured._stream is None:
            Captured._stream = torch.cuda.Stream()
        stream = Captured._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.outputs = self.function(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = str(error).strip().partition("\n")[0]
            raise EchosetError(
                f"this network's step can't be captured as a CUDA graph ({why}); use --step eager"
            ) from error
        return graph


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor an optimiser changes: parameters and their state."""
    tensors: list[Tensor] = []
    for group in optimiser.param_groups:
        tensors += group["params"]
    for state in optimiser.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return tensors
