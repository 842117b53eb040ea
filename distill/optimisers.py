"""Optimisers whose learning rate follows a schedule: Muon, and torch's SGD and AdamW with the same
two handles.

On the small students here Muon reaches in one step what SGD with momentum reaches in about two; see
docs/log.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synthesis_kernels.backend import resolve_precision

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton–Schulz iteration: fast to about 1 ± 0.3, which is all that is needed."""
PEAKS = {"muon": 0.05, "sgd": 0.1, "adamw": 3e-3}
"""Each optimiser's usual learning rate at the peak of the schedule."""


class Scheduled(torch.optim.Optimizer):
    """Each group's `lr` is its `peak` times what `set_share` was last given.

    Rates are tensors on the device, so a step can be captured in a CUDA graph.
    """

    def set_share(self, share: float) -> None:
        """Set the learning rates to `share` of their peaks."""
        for group in self.param_groups:
            group["lr"].fill_(group["peak"] * share)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; a saved rate comes from the CPU, where a captured step would take it for a
        constant.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            if group["params"]:
                group["lr"] = group["lr"].to(group["params"][0].device)


class ScheduledSGD(Scheduled, torch.optim.SGD):
    """SGD with Nesterov momentum."""


class ScheduledAdamW(Scheduled, torch.optim.AdamW):
    """AdamW."""


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

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure: no loop here has one
        """One update from the gradients at hand."""
        for group in self.param_groups:
            update = self._muon if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], group)

    def _muon(
        self,
        parameter: Tensor,  # (R, …), the rest being C numbers
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
        nesterov = gradient.add(momentum, alpha=group["momentum"])
        direction = orthogonalise(nesterov.flatten(1)).view_as(parameter)
        scale = max(1.0, parameter.shape[0] / parameter[0].numel()) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction * (group["lr"] * scale))

    def _adam(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
    ) -> None:
        """Adam (Kingma & Ba 2015) with β₁ = 0.9, β₂ = 0.999 and ε = 1e-8."""
        if not state:
            state["first"] = torch.zeros_like(parameter)
            state["second"] = torch.zeros_like(parameter)
            state["count"] = torch.zeros((), device=parameter.device)
        count = state["count"].add_(1)
        first = state["first"].lerp_(gradient, 0.1)
        second = state["second"].lerp_(gradient.square(), 0.001)
        denominator = (second / (1 - 0.999**count)).sqrt_().add_(1e-8)
        rate = group["lr"] / (1 - 0.9**count)
        parameter.sub_(first / denominator * rate)


def orthogonalise(matrix: Tensor, steps: int = 4) -> Tensor:  # (R, C)
    """Bring singular values above a hundredth of the norm near 1, by Newton–Schulz iteration in
    bfloat16 (float32 where that is emulated, and slow):

        X ← a·X + (b·XXᵀ + c·(XXᵀ)²)·X, from X = G / ‖G‖
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(resolve_precision(matrix.device))
    x = x / (x.norm() + 1e-7)
    # The product of the shorter sides is the smaller one.
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    if is_tall:
        x = x.T
    return x.to(matrix.dtype)


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
