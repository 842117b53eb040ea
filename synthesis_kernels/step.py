"""How a training step runs: eagerly, or as a captured CUDA graph. Both compute the same, to
rounding.

A step is a function of a few input tensors that reads and changes other tensors in place (weights,
optimiser state) and returns tensors. `Captured` wraps it; `resolve_step` says which way to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from synthesis_kernels.backend import free_cycles, say_once
from synthesis_kernels.choices import Step
from synthesis_kernels.errors import EchosetError

Function = Callable[..., tuple[Tensor, ...]]
Result = TypeVar("Result")

_side_stream: torch.cuda.Stream | None = None
"""One for all: libraries keep memory for each."""

GRAPH_EARNS = 50
"""Steps after which a capture (a few eager steps' time) has paid for itself."""


def resolve_step(step: Step, device: torch.device, steps: int) -> Step:
    """`auto` is eager on a CPU and in short runs. It stays `auto` in long runs on CUDA: a graph
    there, or eager steps where the network can't be captured. A way asked for by name that can't
    run here raises.
    """
    if step == "graph" and device.type != "cuda":
        raise EchosetError(
            "step 'graph' captures a CUDA graph and needs a CUDA device; use --step eager"
        )
    if step != "auto":
        return step
    return "auto" if device.type == "cuda" and steps >= GRAPH_EARNS else "eager"


class Captured:
    """A step as a CUDA graph: inputs are copied to fixed places, then everything runs in one launch
    without the host.

    The first call runs eagerly (optimisers make their state then), the second captures. What a call
    returns is overwritten by the next. A step that can't be captured is an error where a graph is
    `required`; otherwise it goes on eagerly, and says so once.
    """

    def __init__(
        self,
        function: Function,
        changed: Callable[[], Iterable[Tensor]],
        required: bool = True,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        """`generators` are those that the function draws from, beside torch's own."""
        self.function = function
        self.changed = changed
        self.required = required
        self.generators = generators
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.problem: str | None = None
        """Why there is no graph, once that is known."""
        self.inputs: list[Tensor] = []
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.calls == 1:
            return self.function(*inputs)
        if self.graph is None and self.problem is None:
            self._capture(inputs)
        if self.graph is None:
            return self.function(*inputs)
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        self.graph.replay()
        return self.outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Make the graph, or learn why there is none; everything that trying it changed is put
        back.
        """
        device = inputs[0].device
        free_cycles(device)
        self.inputs = [tensor.clone() for tensor in inputs]
        before = _Before(self.changed(), self.generators)

        def run() -> tuple[Tensor, ...]:
            return self.function(*self.inputs)

        warm_up(run)
        try:
            self.graph, self.outputs = record(run, self.generators)
        except CaptureFailed as failed:
            if self.required:
                raise failed.told()  # noqa: B904 - its cause is the first error
            self.problem = failed.why
            self.inputs = []
        finally:
            before.put_back()
        if self.problem is not None:
            # What the failed run made hangs on its traceback.
            free_cycles(device)
            say_once(
                f"step auto: this network's step can't be captured as a CUDA graph "
                f"({self.problem}); it runs eagerly, which is slower"
            )


def warm_up(run: Callable[[], object]) -> None:
    """Run twice on a side stream, as capture asks."""
    global _side_stream
    if _side_stream is None:
        _side_stream = torch.cuda.Stream()
    _side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(_side_stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(_side_stream)


def record(
    function: Callable[[], Result], generators: Sequence[torch.Generator] = ()
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A run of the function as a graph, and what it gave. A replay draws from the `generators` as a
    run would.

    Where that fails, the stream and all generators are as they were: a failed capture leaves its
    own stream current, and the generators waiting for its end.
    """
    stream = torch.cuda.current_stream()
    usual = torch.cuda.default_generators[torch.cuda.current_device()]
    states = [(each, each.clone_state()) for each in (usual, *generators)]
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    first: Exception | None = None
    try:
        with torch.cuda.graph(graph):
            try:
                result = function()
            except Exception as error:
                # Ending a capture that has failed is an error, too, and says less.
                first = error
                raise
    except Exception as error:
        torch.cuda.set_stream(stream)
        for generator, state in states:
            generator.graphsafe_set_state(state)
        raise CaptureFailed(first or error) from None
    return graph, result


class CaptureFailed(Exception):
    """A run can't be captured; `first` is the error that began it."""

    def __init__(self, first: Exception) -> None:
        super().__init__(str(first))
        self.first = first
        self.why = str(first).strip().partition("\n")[0] or type(first).__name__

    def told(self) -> Exception:
        """The error for somebody who asked for a graph."""
        if isinstance(self.first, torch.OutOfMemoryError):
            return self.first
        error = EchosetError(
            f"this network's step can't be captured as a CUDA graph ({self.why}); use --step eager"
        )
        error.__cause__ = self.first
        return error


class _Before:
    """What an attempt to capture changes, as it was before it."""

    def __init__(self, tensors: Iterable[Tensor], generators: Iterable[torch.Generator]) -> None:
        self.tensors = list(tensors)
        self.values = [tensor.detach().clone() for tensor in self.tensors]
        self.drawn = [(generator, generator.get_state()) for generator in generators]
        self.random = torch.cuda.get_rng_state()

    @torch.no_grad()
    def put_back(self) -> None:
        """Give tensors and generators their values again."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(self.random)
        for generator, state in self.drawn:
            generator.set_state(state)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor an optimiser changes: parameters and their state."""
    tensors: list[Tensor] = []
    for group in optimiser.param_groups:
        tensors += group["params"]
    for state in optimiser.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return tensors
