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
from inversion.bench.replays import Replays, Work
from inversion.bench.timing import Bench, precision_name, ratio
from synthesis_kernels.backend import forward_pass, kernel_form
from synthesis_kernels.bn_match import bn_match
from synthesis_kernels.conv3x3 import conv3x3, conv3x3_reference, runs
from synthesis_kernels.divergence import divergence, divergence_reference
from synthesis_kernels.moment_target import fold_batch_norm
from synthesis_kernels.priority import draw_distinct
from synthesis_kernels.upsample_conv import upsample_conv, upsample_conv_reference
from synthesis_kernels.views import ViewPlan, views, views_reference

TEMPERATURE = 4.0


class Kernel(NamedTuple):
    """A kernel and what it is compared with, on the same inputs."""

    works: dict[str, Work]
    size: int
    """Bytes that it has to read and write: each tensor once a pass."""
    flops: int = 0
    """What its products would take, done one by one; a form that needs fewer may pass the limit."""


def kernel_times(bench: Bench, limit: dict[str, float]) -> dict[str, Any]:
    """Every kernel that runs here; the speed-up is over its definition."""
    kernels = {}
    for name, make in KERNELS.items():
        times = times_of(bench, make, limit)
        if times is not None:
            kernels[name] = times | {"speedup": ratio(times, "definition")}
    return kernels


def times_of(
    bench: Bench, make: Callable[[Bench], Kernel | None], limit: dict[str, float]
) -> dict[str, Any] | None:
    """How long each side takes, how many bytes ours moves in that time, and how near it comes to
    the machine's copy or matrix rate, whichever binds it; None where there is no such kernel.
    """
    kernel = make(bench)
    if kernel is None:
        return None
    works = bench.on_device(lambda: _works(bench, make), kernel.size)
    times = bench.compare(**works)
    seconds = times["ours"]["ms"] / 1e3
    rate = kernel.size / seconds / 1e9
    share = rate / limit["copy_gb_per_s"]
    if kernel.flops:
        most = limit[f"{precision_name(bench.precision)}_gflops"]
        share = max(share, kernel.flops / seconds / 1e9 / most)
    found = times | {"gb_per_s": rate, "share_of_limit": share}
    problems = {
        name: work.problem
        for name, work in works.items()
        if isinstance(work, Replays) and work.problem is not None
    }
    return found | {"not_captured": problems} if problems else found


def _works(bench: Bench, make: Callable[[Bench], Kernel | None]) -> dict[str, Work]:
    """Made anew, with tensors of its own."""
    kernel = make(bench)
    assert kernel is not None, "it ran a moment ago"
    return kernel.works


def divergence_kernel(bench: Bench, *shape: int) -> Kernel:
    """Of answers of this shape, (B, K, *places)."""
    logits = [torch.randn(shape, device=bench.device) for _ in range(2)]

    def at_temperature(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda teacher, student: function(teacher, student, TEMPERATURE)

    ours = at_temperature(divergence)
    return trained(ours, at_temperature(divergence_reference), *logits)


def upsample_conv_kernel(bench: Bench) -> Kernel:
    """The generator's second layer."""
    batch = bench.run.batch
    x = channels_last(bench, torch.randn(batch, 128, 16, 16, device=bench.device))
    weight = torch.randn(64, 128, 3, 3, device=bench.device) * 0.03
    weight = weight.contiguous(memory_format=torch.channels_last)
    products = batch * 64 * 32 * 32 * 128 * 9
    # As much again for each gradient.

    def definition(x: Tensor, weight: Tensor) -> Tensor:
        return upsample_conv_reference(x, weight.to(x.dtype))

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        with forward_pass(bench.device, bench.precision):
            return upsample_conv(x, weight)

    return trained(ours, definition, x, weight, flops=3 * 2 * products)


def conv3x3_kernel(bench: Bench) -> Kernel | None:
    """A layer that learns; None where no form of ours runs in this precision."""
    kind: dict[str, Any] = {"device": bench.device}
    x = channels_last(bench, torch.randn(bench.run.batch, 64, 16, 16, **kind))
    weight = torch.randn(64, 64, 3, 3, **kind) * 0.04
    if not runs(x, weight):
        return None

    def definition(x: Tensor, weight: Tensor) -> Tensor:
        return conv3x3_reference(x, weight.to(x.dtype))

    flops = 2 * bench.run.batch * 64 * 16 * 16 * 64 * 9
    return trained(conv3x3, definition, x, weight, flops=3 * flops)


def views_kernel(bench: Bench) -> Kernel:
    """Every kind of view that is made of whole pixels."""
    device = bench.device
    shape = (bench.run.images, 3, 32, 32)
    pool = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    index = torch.randint(len(pool), (bench.run.batch,), device=device)
    view = torch.arange(bench.run.batch, device=device)
    plan = ViewPlan(crop=4, flip=True, cutout=8, mixup=0.5)
    works: dict[str, Work] = {
        "ours": lambda: views(pool, index, view, plan, 0),
        "definition": lambda: views_reference(pool, index, view, plan, 0),
    }
    # Two images of bytes are read, and one of float32 is written.
    return Kernel(works, bench.run.batch * 3 * 32 * 32 * (2 + 4))


def priority_kernel(bench: Bench) -> Kernel:
    """A batch drawn from fifty thousand images."""
    batch = bench.run.batch
    chances = torch.rand(50_000, device=bench.device)
    generator = torch.Generator(bench.device).manual_seed(0)
    if bench.device.type == "cuda":
        # The one that a graph knows by itself.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
    works: dict[str, Work] = {
        "ours": lambda: draw_distinct(chances, batch, generator),
        "definition": lambda: torch.multinomial(chances, batch, False, generator=generator),
    }
    return Kernel(works, chances.nbytes + 8 * batch)


KERNELS: dict[str, Callable[[Bench], Kernel | None]] = {
    "divergence": lambda bench: divergence_kernel(bench, bench.run.batch, 100),
    "divergence, dense": lambda bench: divergence_kernel(bench, 8, 21, 128, 128),
    "upsample_conv": upsample_conv_kernel,
    "conv3x3": conv3x3_kernel,
    "views": views_kernel,
    "priority": priority_kernel,
}
"""Every kernel's name and what is timed of it; `bn_match` is timed against the peers, too."""


def bn_match_times(bench: Bench, limit: dict[str, float]) -> dict[str, Any]:
    """BatchNorm, ReLU and batch moments of a 128×32×32×32 input, forward and backward.

    Ours does all three. The peers' hook does the moments alone (`hook_ms`); the speed-up is against
    that, and `with_norm_speedup` against the hook together with the BatchNorm and ReLU that it
    watches.
    """
    times = times_of(bench, bn_match_kernel, limit)
    assert times is not None, "it always runs"
    return times | {
        "speedup": ratio(times, "peers"),
        "with_norm_speedup": ratio(times, "hook_and_norm"),
    }


def bn_match_kernel(bench: Bench) -> Kernel:
    """Ours, its definition, and the peers' two."""
    x = torch.randn(128, 32, 32, 32, device=bench.device)
    running_mean = torch.zeros(32, device=bench.device)
    running_variance = torch.ones(32, device=bench.device)
    ours = channels_last(bench, x).requires_grad_()
    match = _match(ours, running_mean, running_variance)
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

    works: dict[str, Work] = {
        "ours": match,
        "definition": definition,
        "peers": hook,
        "hook_and_norm": hook_and_norm,
    }
    # Input and output forward; input, the output's gradient and the input's backward.
    return Kernel(works, 5 * ours.nbytes)


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


def trained(
    ours: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    *inputs: Tensor,
    flops: int = 0,
) -> Kernel:
    """Forward and backward of both."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format) for x in inputs]
    for leaf in leaves:
        leaf.requires_grad_()
    grad = torch.randn_like(ours(*leaves))
    works: dict[str, Work] = {
        "ours": lambda: torch.autograd.grad(ours(*leaves), leaves, grad),
        "definition": lambda: torch.autograd.grad(definition(*leaves), leaves, grad),
    }
    # Inputs and output forward; inputs, their gradients and the output's backward.
    return Kernel(works, 3 * sum(leaf.nbytes for leaf in leaves) + 2 * grad.nbytes, flops)
