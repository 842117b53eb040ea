"""Weights in bfloat16 beside those in float32 that are trained: cast once a step, all together, and
not each by itself in every pass, as autocast does.

    shadows = Shadows(network)
    with shadows:
        loss = network(images)   # under autocast
    loss.backward()
    shadows.hand_over()          # their gradients to the weights
    optimiser.step()
    shadows.follow()

What comes out is what autocast gives, to the bit: there too a pass casts each weight once, and a
gradient is bfloat16 before it is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import torch
from torch import Tensor, nn

from synthesis_kernels import strided_conv
from synthesis_kernels.conv3x3 import has_layer

CAST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
"""Layers whose weights autocast casts, and which do nothing else with them. A subclass may, as may
a layer with a parametrization, whose class is then another."""


class Shadows:
    """The weights of a network's convolutions and linear layers in bfloat16; inside `with` they are
    in the layers' places. They are no part of the network and of nothing that is saved.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places = list(_places(network))
        # A weight that two layers share has one shadow.
        distinct = {id(weight): weight for _, _, weight in self._places}
        self.weights: list[Tensor] = [*distinct.values()]
        shadows = [_cast(weight) for weight in distinct.values()]
        self.tensors: list[Tensor] = [*shadows]
        self._of = dict(zip(distinct, shadows, strict=True))
        self._gradients = [torch.empty_like(weight) for weight in self.weights]
        self._seen = self._versions()

    def __enter__(self) -> Shadows:
        for layer, name, weight in self._places:
            shadow = self._of[id(weight)]
            if shadow.requires_grad is not weight.requires_grad:
                shadow.requires_grad_(weight.requires_grad)
            layer._parameters[name] = shadow
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer, name, weight in self._places:
            layer._parameters[name] = weight

    @torch.no_grad()
    def hand_over(self) -> None:
        """Give the weights the gradients of their shadows, which then have none."""
        given: list[Tensor] = []
        taken: list[Tensor] = []
        for weight, shadow, kept in zip(self.weights, self.tensors, self._gradients, strict=True):
            if shadow.grad is None:
                continue
            if weight.grad is None:
                given.append(shadow.grad)
                taken.append(kept)
                weight.grad = kept
            else:  # of a second pass, without shadows
                weight.grad = weight.grad + shadow.grad
            shadow.grad = None
        if given:
            torch._foreach_copy_(taken, given)

    @torch.no_grad()
    def follow(self) -> None:
        """Take over the weights as they are now."""
        if self.weights:
            torch._foreach_copy_(self.tensors, self.weights)
        self.note()

    def note(self) -> None:
        """The weights as they are now have been taken over."""
        self._seen = self._versions()

    def catch_up(self) -> None:
        """Take over weights that somebody else has changed: that were loaded, or restored."""
        if self._versions() != self._seen:
            self.follow()

    def _versions(self) -> list[tuple[int, int]]:
        return [(weight._version, weight.data_ptr()) for weight in self.weights]


def _places(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every float32 weight and bias of such layers, and where it is."""
    for layer in network.modules():
        # The native convolutions read the weights as they are.
        if type(layer) not in CAST or has_layer(layer, torch.bfloat16):
            continue
        if strided_conv.has_layer(layer, torch.bfloat16):
            continue
        for name in ("weight", "bias"):
            weight = layer._parameters.get(name)
            if weight is not None and weight.dtype is torch.float32:
                yield layer, name, weight


def _cast(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach().bfloat16(), requires_grad=weight.requires_grad)
