"""Which students' steps a CPU may replay (`synthesis_kernels/tape.py`): those that do the same in
Python at every step.
"""

from __future__ import annotations

import torch
from torch import nn

from distill.models import Classifier
from distill.models.zoo.blocks import is_heard
from synthesis_kernels.choices import Step

KNOWN = ("torch.nn.", "distill.", "inversion.")
"""Whose layers do the same at every pass, as far as Python goes."""
ZOO = "distill.models.zoo."


def may_replay(step: Step, device: torch.device, student: Classifier) -> bool:
    """Whether such steps are wanted on this device, and the student is of the zoo.

    In some other networks the engine adds gradients up in another order while somebody listens: a
    recorded step gives other bits there than an eager one.
    """
    is_ours = type(student.network).__module__.startswith(ZOO)
    return step == "auto" and device.type == "cpu" and is_ours


def is_known(network: nn.Module) -> bool:
    """Whether all layers are torch's or ours, and no user's hook waits there: any others may count,
    log or draw numbers in Python, which a replay would not repeat.
    """
    layers_known = all(
        type(layer).__module__.startswith(KNOWN)
        and "forward" not in vars(layer)
        and not is_heard(layer)
        for layer in network.modules()
    )
    return layers_known and not any(
        weight._backward_hooks or weight._post_accumulate_grad_hooks
        for weight in network.parameters()
    )
