"""How a training step runs: eagerly, or as a captured CUDA graph. Both compute the same, to
rounding.

A step is a function of a few input tensors that reads and changes other tensors in place (weights,
optimiser state) and returns tensors. `Captured` wraps it; `resolve_step` says which way to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from synthesis_kernels.backend import free_cycles
from synthesis_kernels.choices import Step
from synthesis_kernels.errors import EchosetError

Function = Callable[..., tuple[Tensor, ...]]

GRAPH_EARNS = 50
"""Steps after which a capture (a few eager steps' time) has paid for itself."""


def resolve_step(step: Step, device: torch.device, steps: int) -> Step:
    """`auto` captures a graph on CUDA where the run is long enough, and is eager on a CPU. A way
    asked for by name that can't run here raises.
    """
    if step == "graph" and device.type != "cuda":
        raise EchosetError(
            "step 'graph' captures a CUDA graph and needs a CUDA device; use --step eager"
        )
    if step != "auto":
        return step
    return "graph" if device.type == "cuda" and steps >= GRAPH_EARNS else "eager"


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
