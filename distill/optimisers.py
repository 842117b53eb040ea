"""Optimisers whose learning rate follows a schedule: Muon, and torch's SGD and AdamW with the same
two handles.

Muon makes momentum orthogonal for matrices and convolutions, and is Adam for the rest (Jordan et
al. 2024). On the small students here it reaches in one step what SGD with momentum reaches in about
two; see docs/log.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synthesis_kernels.backend import resolve_precision

COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # quintic Newton–Schulz: fast to about 1 ± 0.3, which is all that is needed


def orthogonalise(matrix: Tensor, steps: int = 4) -> Tensor:  # (R, C)
    """Bring singular values above a hundredth of the norm near 1, by Newton–Schulz iteration in
    bfloat16 (float32 where that is emulated, and slow).
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(resolve_precision(matrix.device))
    x = x / (x.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


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
            group["lr"] = (
                group["lr"].to(group["params"][0].device) if group["params"] else group["lr"]
            )


def _groups(
    network: nn.Module, matrix_rate: float, vector_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors, which don't."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "orthogonal": True, "peak": matrix_rate, "weight_decay": weight_decay},
        {"params": vectors, "orthogonal": False, "peak": vector_rate, "weight_decay": 0.0},
    ]
    for group in groups:
        group["lr"] = torch.tensor(
            group["peak"], device=group["params"][0].device if group["params"] else None
        )
    return groups


class ScheduledSGD(Scheduled, torch.optim.SGD):
    """SGD with Nesterov momentum."""


class ScheduledAdamW(Scheduled, torch.optim.AdamW):
    """AdamW."""


PEAKS = {"muon": 0.05, "sgd": 0.1, "adamw": 3e-3}


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
    cuda = next(network.parameters()).is_cuda
    form = {"fused": True} if cuda else {"foreach": False}
    if name == "sgd":
        return ScheduledSGD(groups, lr=peak, momentum=0.9, nesterov=True, **form)
    optimiser = ScheduledAdamW(groups, lr=peak, capturable=cuda, **form)
    optimiser._warned_capturable_if_run_uncaptured = (
        True  # eager steps with a capturable optimiser are fine here
    )
    return optimiser


class Muon(Scheduled):
    """One optimiser for a whole network; what is no matrix moves by Adam, at a tenth of the
    rate.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__(
            _groups(network, learning_rate, learning_rate / 10, weight_decay),
            {"momentum": momentum},
        )

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients at hand."""
        for group in self.param_groups:
            update = self._orthogonal if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, self.state[parameter], group)

    def _orthogonal(
        self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
        direction = orthogonalise(
            parameter.grad.add(momentum, alpha=group["momentum"]).flatten(1)
        ).view_as(parameter)
        # An R×C orthogonal update has the size of its shorter side; this keeps the change of
        # outputs alike across layers.
        scale = max(1.0, parameter.shape[0] / parameter[0].numel()) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
            direction * (group["lr"] * scale)
        )

    def _adam(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state.update(first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
            state["count"] = torch.zeros((), device=parameter.device)
        count = state["count"].add_(1)
        first = state["first"].lerp_(parameter.grad, 0.1)
        second = state["second"].lerp_(parameter.grad.square(), 0.001)
        denominator = (second / (1 - 0.999**count)).sqrt_().add_(1e-8)
        parameter.sub_(first / denominator * (group["lr"] / (1 - 0.9**count)))
