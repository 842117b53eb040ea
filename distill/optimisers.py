"""Optimisers whose learning rate follows a schedule: Muon, and torch's SGD and AdamW with the same
two handles.

On the small students here Muon reaches in one step what SGD with momentum reaches in about two; see
docs/log.md.
"""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from distill.adam import Vectors
from synthesis_kernels.backend import resolve_precision

MOST_WASTED = {"cpu": 4_000_000, "cuda": 64_000_000}
"""Multiplications by zeros that a stack of matrices may cost in a product, to be one and not
two: as many as a device makes while it is told of the second.
"""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton–Schulz iteration: fast to about 1 ± 0.3, which is all that is needed."""
PEAKS = {"muon": 0.05, "sgd": 0.1, "adamw": 3e-3}
"""Each optimiser's usual learning rate at the peak of the schedule."""


class Uncompiled(torch.optim.Optimizer):
    """Torch's methods as they are without its compiler, whose import takes a second."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class Adam(Uncompiled, torch.optim.Adam):
    """Adam."""

    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class Scheduled(Uncompiled):
    """Each group's `lr` is its `peak` times what `set_share` was last given.

    Rates are tensors on the device, so a step can be captured in a CUDA graph.
    """

    def set_share(self, share: float) -> None:
        """Set the learning rates to `share` of their peaks."""
        for group in self.param_groups:
            group["lr"].fill_(group["peak"] * share)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all but the peaks; a saved rate comes from the CPU, where a captured step would
        take it for a constant.
        """
        peaks = [group["peak"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, peak in zip(self.param_groups, peaks, strict=True):
            group["peak"] = peak
            if group["params"]:
                group["lr"] = group["lr"].to(group["params"][0].device)


class ScheduledSGD(Scheduled, torch.optim.SGD):
    """SGD with Nesterov momentum."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class ScheduledAdamW(Scheduled, torch.optim.AdamW):
    """AdamW."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class Muon(Scheduled):
    """Momentum made orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural
    networks"), for the matrices and convolutions of a network; its vectors move by Adam, at a tenth
    of the rate.

    A matrix W of R×C with gradient G moves by

        M ← μ·M + G
        W ← (1 − η·λ)·W − η·√max(1, R/C)·orthogonalise(G + μ·M)

    An orthogonal update of R×C has the size of its shorter side; the root keeps the change of
    outputs alike across layers.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        groups = _groups(network, learning_rate, learning_rate / 10, weight_decay)
        super().__init__(groups, {"momentum": momentum})
        self._stacks: list[Stack] = []
        self._stacked: list[int] = []
        self._vectors: Vectors | None = None

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure: no loop here has one
        """One update from the gradients at hand."""
        for group in self.param_groups:
            update = self._muon if group["orthogonal"] else self._adam
            parameters = [one for one in group["params"] if one.grad is not None]
            if parameters:
                update(parameters, [one.grad for one in parameters], group)

    def _muon(
        self,
        parameters: list[Tensor],  # (R, …) each, the rest being C numbers
        gradients: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        momentum = group["momentum"]
        momenta = self._kept(parameters, "momentum")
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
        nesterov = torch._foreach_add(gradients, momenta, alpha=momentum)
        stacked = [id(parameter) for parameter in parameters]
        if stacked != self._stacked:
            self._stacks = stack_up(parameters)
            self._stacked = stacked
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for stack in self._stacks:
            moves = stack.orthogonalise([nesterov[place] for place in stack.places], group["lr"])
            torch._foreach_sub_([parameters[place] for place in stack.places], moves)

    def _adam(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        """Adam (Kingma & Ba 2015) with β₁ = 0.9, β₂ = 0.999 and ε = 1e-8."""
        kept = [self.state[parameter].get("moments") for parameter in parameters]
        if self._vectors is None or not self._vectors.holds(kept):
            self._vectors = Vectors(parameters, kept)
            for parameter, moments in zip(parameters, self._vectors.parts, strict=True):
                self.state[parameter]["moments"] = moments
        torch._foreach_sub_(parameters, self._vectors.moves(gradients, group["lr"]))

    def _kept(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """What is kept of each parameter under this name, 0 at first."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


class Stack:
    """Matrices one upon another, filled up with zeros to one shape and the shorter side first, so
    that they are made orthogonal together.
    """

    def __init__(self, parameters: list[Tensor], places: list[int]) -> None:
        self.places = places
        device = parameters[0].device
        sides = [_sides(parameters[place]) for place in places]
        shape = (len(places), max(short for short, _ in sides), max(long for _, long in sides))
        self._matrices = torch.zeros(shape, dtype=resolve_precision(device), device=device)
        self._moves = torch.zeros(shape, device=device)
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        scales = []
        for number, place in enumerate(places):
            parameter = parameters[place]
            self._inputs.append(_seen_as(self._matrices[number], parameter))
            self._outputs.append(_seen_as(self._moves[number], parameter))
            scales.append(max(1.0, parameter.shape[0] / parameter[0].numel()) ** 0.5)
        self._scales = torch.tensor(scales, device=device).view(-1, 1, 1)

    def orthogonalise(self, matrices: list[Tensor], rate: Tensor) -> list[Tensor]:
        """The matrices made orthogonal, times the rate and √max(1, R/C)."""
        torch._foreach_copy_(self._inputs, matrices)
        torch.mul(newton_schulz(self._matrices), self._scales * rate, out=self._moves)
        return self._outputs


def stack_up(parameters: list[Tensor]) -> list[Stack]:
    """Stacks of the parameters' matrices: as few as can be without much work on zeros."""
    sides = [_sides(parameter) for parameter in parameters]
    most = MOST_WASTED.get(parameters[0].device.type, MOST_WASTED["cuda"])
    stacks: list[list[int]] = []
    for place in sorted(range(len(parameters)), key=lambda place: sides[place], reverse=True):
        if not stacks or _wasted([sides[one] for one in (*stacks[-1], place)]) > most:
            stacks.append([])
        stacks[-1].append(place)
    return [Stack(parameters, places) for places in stacks]


def _wasted(sides: list[tuple[int, int]]) -> int:
    """Multiplications by zeros, where matrices of these sides are filled up to one shape."""
    whole = (max(short for short, _ in sides), max(long for _, long in sides))
    return len(sides) * _work(whole) - sum(map(_work, sides))


def _work(sides: tuple[int, int]) -> int:
    """Multiplications of one product of a matrix with itself."""
    short, long = sides
    return short**2 * long


def _sides(parameter: Tensor) -> tuple[int, int]:
    """The shorter side of the parameter's matrix, and the longer one."""
    rows = parameter.shape[0]
    columns = parameter[0].numel()
    return min(rows, columns), max(rows, columns)


def _seen_as(matrix: Tensor, parameter: Tensor) -> Tensor:
    """The corner of a filled-up matrix that holds the parameter's, in the parameter's shape; its
    columns are in the order in which the parameter lies in memory.
    """
    rows = parameter.shape[0]
    columns = parameter[0].numel()
    is_tall = rows > columns
    corner = matrix[:columns, :rows].T if is_tall else matrix[:rows, :columns]
    if parameter.ndim == 4:
        _, channels, height, width = parameter.shape
        return corner.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
    if parameter.ndim == 2:
        return corner
    return corner.unflatten(1, parameter.shape[1:])


def newton_schulz(matrices: Tensor, steps: int = 4) -> Tensor:  # (N, S, L), S ≤ L
    """Bring singular values above a hundredth of the norm near 1:

    X ← a·X + (b·XXᵀ + c·(XXᵀ)²)·X, from X = G / ‖G‖
    """
    a, b, c = COEFFICIENTS
    x = matrices / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def make_optimiser(
    network: nn.Module,
    name: str = "muon",
    learning_rate: float | None = None,
    weight_decay: float = 5e-4,
) -> Scheduled:
    """The named optimiser for all of the network's parameters, at its usual peak rate unless one is
    given.
    """
    peak = PEAKS[name] if learning_rate is None else learning_rate
    if name == "muon":
        return Muon(network, peak, weight_decay=weight_decay)
    groups = _groups(network, peak, peak, weight_decay)
    # On CUDA the fused forms: they read a rate that is a tensor without waiting for it.
    on_cuda = next(network.parameters()).is_cuda
    form: dict[str, Any] = {"fused": True} if on_cuda else {"foreach": False}
    if name == "sgd":
        return ScheduledSGD(groups, lr=peak, momentum=0.9, nesterov=True, **form)
    optimiser = ScheduledAdamW(groups, lr=peak, capturable=on_cuda, **form)
    # Eager steps with a capturable optimiser are fine here.
    optimiser._warned_capturable_if_run_uncaptured = True
    return optimiser


def _groups(
    network: nn.Module, matrix_rate: float, vector_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors, which don't."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "orthogonal": True, "peak": matrix_rate, "weight_decay": weight_decay},
        {"params": vectors, "orthogonal": False, "peak": vector_rate, "weight_decay": 0.0},
    ]
    for group in groups:
        device = group["params"][0].device if group["params"] else None
        group["lr"] = torch.tensor(group["peak"], device=device)
    return groups
