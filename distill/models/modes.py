"""Where a network is, and its evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_of(network: nn.Module) -> torch.device | None:
    """The device of the network's first tensor; None where it has none."""
    return next((tensor.device for tensor in network.state_dict().values()), None)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and afterwards every layer back into its own."""
    with modes_kept(network):
        network.eval()
        yield


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Afterwards every layer is in the mode that it was in: of a user's network some may be in
    training and others not.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
