"""Boundary supporting samples (Heo et al. 2019): images pushed just over the teacher's decision
boundary, learnt from as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distill.batch import Batch
from distill.methods import Method
from synthesis_kernels.divergence import divergence

STEPS = 10
RATE = 0.3
SLACK = 1e-4
TEMPERATURE = 3.0
ATTACKED = 0.25
"""Part of a batch that is pushed over the boundary."""
ATTACKS_END = 0.75
"""Part of the training after which the boundary is left alone."""


def push_over(
    network: Callable[[Tensor], Tensor],
    images: Tensor,  # (B, C, H, W)
    base: Tensor,  # (B,) the class each image has now
    target: Tensor,  # (B,) the class it is pushed to
    unit: float | None = 1.0,
    steps: int = STEPS,
) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (B,) bool
    """Repeat x ← x + .3·unit·(z_base − z_target + 1e-4)·∇(z_target − z_base)/‖∇‖ until z_target >
    z_base.

    The published step is in normalised units: `unit` is the standard deviation that the network's
    normaliser divides by. Its length depends on how large the logits are; with `unit` None each
    step is the first-order distance to the boundary and 2 % more (as in DeepFool), which measures
    where the boundary is, for any network. Gives each image where it stopped, and whether it
    crossed; images that have crossed stay where they are.
    """
    images = images.detach().clone()
    crossed = torch.zeros_like(base, dtype=torch.bool)
    with torch.enable_grad():
        for step in range(steps + 1):
            left = _left(crossed)
            if not len(left):
                break
            here = images[left].requires_grad_(step < steps)
            logits = network(here).float()
            wanted = logits.gather(1, target[left, None])
            present = logits.gather(1, base[left, None])
            gap = (wanted - present)[:, 0]
            crossed[left] |= gap.detach() > 0
            if step == steps:
                break
            (slope,) = torch.autograd.grad(gap.sum(), here)
            length = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
            size = RATE * unit if unit is not None else 1.02 / length
            stride = size * (SLACK - gap.detach()) / length * ~crossed[left]
            images[left] = here.detach() + stride[:, None, None, None] * slope
    return images, crossed


def _left(crossed: Tensor) -> Tensor:  # (B,) bool -> (n,)
    """The images to push further. Most cross at once; but on CUDA, asking which ones are left would
    wait for the device, and all go along.
    """
    if crossed.device.type == "cpu":
        return (~crossed).nonzero()[:, 0]
    return torch.arange(len(crossed), device=crossed.device)


def soft_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = TEMPERATURE
) -> Tensor:  # (B, K) -> (B,)
    """KL(σ(z_T/T) ‖ σ(z_S/T)) a sample: soft cross-entropy less the teacher's entropy, so zero at
    the teacher.
    """
    return divergence(teacher_logits, student_logits, temperature) / temperature**2


def choose_bases(
    student_logits: Tensor,  # (B, K)
    teacher_logits: Tensor,  # (B, K)
    labels: Tensor,  # (B,)
    count: int,
    draws: Tensor,  # (count,) in [0, 1)
) -> tuple[Tensor, Tensor, Tensor]:  # (count,), (count,), (count,) bool
    """Which images to push, whither, and whether that is worth anything.

    Of those that both networks know, the `count` on which they differ most by `soft_loss`; the
    target is drawn by the teacher's probabilities at T = 3 for the other classes. Where fewer are
    known, the rest of the places are marked unfit. (The authors' code asks the teacher alone, ranks
    by differences of probabilities and draws at T = 1, where a sure teacher's other classes round
    to nothing.)
    """
    known = (student_logits.argmax(1) == labels) & (teacher_logits.argmax(1) == labels)
    worth = soft_loss(student_logits, teacher_logits)
    chosen = torch.where(known, worth, -1.0).topk(count).indices
    softened = (teacher_logits[chosen] / TEMPERATURE).softmax(1)
    chances = softened.scatter(1, labels[chosen, None], 0.0)
    sums = chances.cumsum(1)
    # Counting up to the draw, kept below the last class that has a chance at all.
    target = (sums <= draws[:, None] * sums[:, -1:]).sum(1).clamp_max(chances.shape[1] - 1)
    target = torch.where(target == labels[chosen], (target + 1) % chances.shape[1], target)
    return chosen, target, known[chosen]


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Forward passes in training leave the running statistics of BatchNorm layers alone."""
    layers = [
        layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, usual, strict=True):
            layer.momentum = momentum


def _loss(batch: Batch) -> Tensor:
    """r·KL + r_a·KL on pushed images, both at T = 3; r falls from 4 to 1, r_a from 2 to 0 at three
    quarters.
    """
    images = batch.images
    loss = (1 + 3 * (1 - batch.progress)) * soft_loss(batch.logits, batch.answers).mean()
    if not batch.full_phase:
        return loss
    assert batch.frozen is not None, "the method says that it needs the teacher"
    truth = batch.labels.argmax(1)
    count = max(int(len(images) * ATTACKED), 2)
    chosen, target, fit = choose_bases(
        batch.logits.detach(), batch.answers, truth, count, batch.draws[:count]
    )
    std = batch.student.spec.std
    unit = sum(std) / len(std)
    pushed, crossed = push_over(batch.frozen, images[chosen], truth[chosen], target, unit)
    with statistics_kept(batch.student):  # pushed images are no part of what the student will see
        logits = batch.run_network(batch.network, pushed)
    with torch.no_grad():
        answers = batch.frozen(pushed)
    counts = (fit & crossed).float()
    apart = (soft_loss(logits, answers) * counts).sum() / counts.sum().clamp_min(1)
    weight = 2 * (1 - batch.progress / ATTACKS_END).clamp_min(0)
    return loss + weight * apart


BSS = Method(
    "bss",
    1.0,
    frozenset({"answers", "draws", "teacher"}),
    _loss,
    one_decision=True,
    early=ATTACKS_END,
)
