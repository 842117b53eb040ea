"""What is timed: each kernel against its definition in plain torch, forward and backward where it
has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inversion.bench import peers
from inversion.bench.timing import Bench, Work, ratio
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.bn_match import bn_match
from synthesis_kernels.conv3x3 import conv3x3, conv3x3_reference, runs
from synthesis_kernels.divergence import divergence, divergence_reference
from synthesis_kernels.moment_target import fold_batch_norm
from synthesis_kernels.priority import draw_distinct
from synthesis_kernels.upsample_conv import upsample_conv, upsample_conv_reference
from synthesis_kernels.views import ViewPlan, views, views_reference

TEMPERATURE = 4.0


class Pair(NamedTuple):
    """A kernel and its definition on the same inputs."""

    ours: Work
    definition: Work


def kernel_times(bench: Bench) -> dict[str, Any]:
    """Every kernel that runs here; the speed-up is over its definition."""
    kernels = {}
    for name, make in KERNELS.items():
        pair = make(bench)
        if pair is not None:
            times = bench.compare(ours=pair.ours, definition=pair.definition)
            kernels[name] = times | {"speedup": ratio(times, "definition")}
    return kernels


def divergence_pair(bench: Bench, *shape: int) -> Pair:
    """Of answers of this shape, (B, K, *places)."""
    logits = [torch.randn(shape, device=bench.device) for _ in range(2)]

    def at_temperature(function: Callable[..., Tensor]) -> Work:
        return trained(lambda teacher, student: function(teacher, student, TEMPERATURE), *logits)

    return Pair(at_temperature(divergence), at_temperature(divergence_reference))


def upsample_conv_pair(bench: Bench) -> Pair:
    """The generator's second layer."""
    x = channels_last(bench, torch.randn(bench.run.batch, 128, 16, 16, device=bench.device))
    weight = channels_last(bench, torch.randn(64, 128, 3, 3, device=bench.device) * 0.03)
    return Pair(trained(upsample_conv, x, weight), trained(upsample_conv_reference, x, weight))


def conv3x3_pair(bench: Bench) -> Pair | None:
    """A layer that learns; None where no form of ours runs in this precision."""
    kind: dict[str, Any] = {"device": bench.device}
    x = channels_last(bench, torch.randn(bench.run.batch, 64, 16, 16, **kind))
    weight = torch.randn(64, 64, 3, 3, **kind) * 0.04
    if not runs(x, weight):
        return None

    def definition(x: Tensor, weight: Tensor) -> Tensor:
        return conv3x3_reference(x, weight.to(x.dtype))

    return Pair(trained(conv3x3, x, weight), trained(definition, x, weight))


def views_pair(bench: Bench) -> Pair:
    """Every kind of view that is made of whole pixels."""
    device = bench.device
    shape = (bench.run.images, 3, 32, 32)
    pool = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    index = torch.randint(len(pool), (bench.run.batch,), device=device)
    view = torch.arange(bench.run.batch, device=device)
    plan = ViewPlan(crop=4, flip=True, cutout=8, mixup=0.5)
    return Pair(
        lambda: views(pool, index, view, plan, 0),
        lambda: views_reference(pool, index, view, plan, 0),
    )


def priority_pair(bench: Bench) -> Pair:
    """A batch drawn from fifty thousand images."""
    batch = bench.run.batch
    chances = torch.rand(50_000, device=bench.device)
    generator = torch.Generator(bench.device).manual_seed(0)
    return Pair(
        lambda: draw_distinct(chances, batch, generator),
        lambda: torch.multinomial(chances, batch, replacement=False, generator=generator),
    )


KERNELS: dict[str, Callable[[Bench], Pair | None]] = {
    "divergence": lambda bench: divergence_pair(bench, bench.run.batch, 100),
    "divergence, dense": lambda bench: divergence_pair(bench, 8, 21, 128, 128),
    "upsample_conv": upsample_conv_pair,
    "conv3x3": conv3x3_pair,
    "views": views_pair,
    "priority": priority_pair,
}
"""Every kernel's name and what is timed of it; `bn_match` is timed against the peers, too."""


def bn_match_times(bench: Bench) -> dict[str, Any]:
    """BatchNorm, ReLU and batch moments of a 128×32×32×32 input, forward and backward.

    Ours does all three. The peers' hook does the moments alone (`hook_ms`); the speed-up is against
    that, and `with_norm_speedup` against the hook together with the BatchNorm and ReLU that it
    watches.
    """
    x = torch.randn(128, 32, 32, 32, device=bench.device)
    running_mean = torch.zeros(32, device=bench.device)
    running_variance = torch.ones(32, device=bench.device)
    match = _match(channels_last(bench, x).requires_grad_(), running_mean, running_variance)
    x = x.clone().requires_grad_()
    grad = torch.randn_like(x)

    def definition() -> None:
        with kernel_form("reference"):
            match()

    def hook() -> None:
        torch.autograd.grad(peers.hook_statistics(x, running_mean, running_variance), x)

    def hook_and_norm() -> None:
        distance = peers.hook_statistics(x, running_mean, running_variance)
        y = F.batch_norm(x, running_mean, running_variance).relu()
        torch.autograd.grad([y, distance], x, [grad, torch.ones_like(distance)])

    times = bench.compare(
        ours=match, definition=definition, peers=hook, hook_and_norm=hook_and_norm
    )
    return times | {
        "speedup": ratio(times, "peers"),
        "with_norm_speedup": ratio(times, "hook_and_norm"),
    }


def _match(x: Tensor, running_mean: Tensor, running_variance: Tensor) -> Work:
    """Our side, in the form that kernels take where it is called."""
    scale, shift = fold_batch_norm(running_mean, running_variance, None, None, 1e-5)
    grad = torch.randn_like(x)

    def match() -> None:
        y, mean, variance = bn_match(x, scale, shift, True)
        distance = (mean - running_mean).norm() + (variance - running_variance).norm()
        torch.autograd.grad([y, distance], x, [grad, torch.ones_like(distance)])

    return match


def channels_last(bench: Bench, x: Tensor) -> Tensor:
    """In the precision and the layout that our side computes in."""
    return x.to(bench.precision).contiguous(memory_format=torch.channels_last)


def trained(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
    """Forward and backward, as work to be timed."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format) for x in inputs]
    for leaf in leaves:
        leaf.requires_grad_()
    grad = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)
