"""Samples on both sides of the teacher's decision boundaries, walked to from any images (arXiv
2411.12817, boundary attack).

An image goes uphill towards a target class until the teacher decides for it. Kept are the image
just before and the one just after, and each of these one step deeper in its own class: four samples
of one walk. The step adapts as a "bold driver" does: longer while that helps, undone and halved
where it overshoots. Crossing the boundary is an overshoot too, so the pair is closed in on by
halves.

The teacher is only ever asked about whole pixel levels, as they are stored: rounding can't undo
what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.loop import StepProgress
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.views import ask, at_once, to_input
from inversion.options import BoundaryOptions
from synthesis_kernels.errors import EchosetError

# Of at most 255 levels: after eight no stored pixel of a pair differs by more than one, so most end
# earlier
HALVINGS = 16

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BoundarySamples:
    """What came of each walk, one for each (image, target); `samples.after[samples.found]` are the
    good ones of a kind.

    A walk that found nothing keeps its place: its images are real, its labels too, but they are on
    no two sides.
    """

    before: Tensor  # (B, T, C, H, W) uint8
    """Just short of the boundary: any class but the target."""
    after: Tensor  # (B, T, C, H, W) uint8
    """Just over it: the target."""
    deep_before: Tensor  # (B, T, C, H, W) uint8
    """One step from `before` into its own class."""
    deep_after: Tensor  # (B, T, C, H, W) uint8
    """One step from `after` into the target."""
    labels: Tensor  # (B, T, 4) int64
    """The teacher's decisions on the four, in this order, asked anew in float32."""
    targets: Tensor  # (B, T) int64
    found: Tensor  # (B, T) bool
    """By these labels both of `after` are the target and both of `before` are not, and the pair is
    as close as was asked.
    """

    def good(self) -> tuple[Tensor, Tensor]:  # (4F, C, H, W) uint8, (4F,) int64
        """All samples of the F walks that were found, the four of a walk side by side, and their
        labels.
        """
        kinds = torch.stack([self.before, self.after, self.deep_before, self.deep_after], 2)
        return kinds[self.found].flatten(0, 1), self.labels[self.found].flatten()


def attack_boundaries(
    teacher: Classifier,
    images: Tensor,  # (B, C, H, W) uint8
    targets: Tensor,  # (B, T) int64
    options: BoundaryOptions = BoundaryOptions(),
    quiet: bool = True,
    batch: int = 250,
) -> BoundarySamples:
    """Walk every image to each of its targets, `batch` walks at a time; the samples lie where the
    teacher is.

    A target that the image is decided as already leads nowhere, and is marked as not found.
    """
    check_options(options)
    _check_input(teacher, images, targets)
    device, wanted = teacher.mean.device, targets.shape[1]
    network = Frozen(teacher.eval())
    images, flat = images.to(device), targets.to(device).flatten()
    kinds, labels, found = [], [], []
    with StepProgress("walking to boundaries", len(flat), quiet) as progress:
        for walks in torch.arange(len(flat), device=device).split(
            min(batch, at_once(images.shape[-1], 256))
        ):
            part = _attack(
                network, images[walks // wanted], flat[walks], options
            )  # (4, b, C, H, W)
            answers = torch.stack(
                [ask(teacher, to_input(kind), torch.float32).argmax(1) for kind in part]
            )
            here = answers == flat[walks]
            close = _apart(part[0], part[1]) <= options.close
            kinds, labels = [*kinds, part], [*labels, answers]
            found.append(~here[0] & here[1] & ~here[2] & here[3] & close)
            progress.update(sum(map(len, found)))
    before, after, deep_before, deep_after = torch.cat(kinds, 1).unflatten(1, targets.shape)
    of_each = torch.cat(labels, 1).T.unflatten(0, targets.shape)
    found = torch.cat(found).view(targets.shape)
    return BoundarySamples(
        before, after, deep_before, deep_after, of_each, flat.view(targets.shape), found
    )


def check_options(options: BoundaryOptions) -> None:
    """Refuse what can't work, by name."""
    if options.steps < 1:
        raise EchosetError(f"boundary.steps must be at least 1, got {options.steps}")
    for name, least in (("first_step", 0), ("growth", 1), ("close", 0), ("deeper", 0)):
        value = getattr(options, name)
        if not math.isfinite(value) or value < least or not value:
            raise EchosetError(
                f"boundary.{name} must be {f'at least {least}' if least else 'above 0'} and "
                f"finite, got {value}"
            )


def _check_input(teacher: Classifier, images: Tensor, targets: Tensor) -> None:
    spec = teacher.spec
    shape = (spec.channels, spec.size, spec.size)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape:
        raise EchosetError(
            f"images must be uint8, each of shape {shape}, got {images.dtype} of shape "
            f"{tuple(images.shape)}"
        )
    if targets.dtype != torch.int64 or targets.ndim != 2 or len(targets) != len(images):
        raise EchosetError(
            f"targets must be int64 of shape ({len(images)}, T), got {targets.dtype} "
            f"{tuple(targets.shape)}"
        )
    if not targets.numel():
        raise EchosetError("the boundary attack needs one image and one target at least")
    if targets.min() < 0 or targets.max() >= spec.classes:
        raise EchosetError(
            f"targets must lie in 0 to {spec.classes - 1}, got {int(targets.min())} to "
            f"{int(targets.max())}"
        )


def _attack(
    network: Network, images: Tensor, target: Tensor, options: BoundaryOptions
) -> Tensor:  # (4, b, C, H, W) uint8
    """The four samples of each walk; where one failed, whatever it has."""
    before, after, crossed = _walk(network, images.float(), target, options)
    pair = torch.cat(_close_in(network, before, after, target, crossed, options.close))
    _, _, slope = _uphill(network, pair, None)
    deep = _step(pair, options.deeper, slope)
    return torch.cat([_stored(pair), _stored(deep)]).unflatten(0, (4, -1))


def _walk(
    network: Network,
    images: Tensor,  # (b, C, H, W) in levels
    target: Tensor,  # (b,)
    options: BoundaryOptions,
) -> tuple[Tensor, Tensor, Tensor]:  # (b, C, H, W), (b, C, H, W), (b,) bool
    """Uphill until the teacher decides for the target: the last place before, the first one after,
    and whether it did.
    """
    here, after, slope = images.clone(), images.clone(), torch.zeros_like(images)
    odds = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    length = torch.full_like(
        odds, options.first_step / options.growth
    )  # arriving at the start counts as a step that helped
    crossed, finished = (
        torch.zeros_like(target, dtype=torch.bool),
        torch.zeros_like(target, dtype=torch.bool),
    )
    for _ in range(options.steps + 1):
        left = _left(~finished)
        if not len(left):
            break
        trial = _step(here[left], length[left], slope[left])
        decision, gained, uphill = _uphill(network, trial, target[left])
        going = ~finished[left]
        over = going & (decision == target[left])
        helped = (
            going & ~over & (gained >= odds[left])
        )  # levels may round to where they were: no loss, and no reason to stop
        after[left] = _where(over, trial, after[left])
        here[left] = _where(helped, trial, here[left])
        slope[left] = _where(helped, uphill, slope[left])
        odds[left] = torch.where(helped, gained, odds[left])
        length[left] *= torch.where(helped, options.growth, 0.5)
        crossed[left] |= over
        finished[left] |= over | ~slope[left].flatten(1).any(
            1
        )  # with no way uphill, none will be found
    return here, after, crossed


def _close_in(
    network: Network,
    before: Tensor,  # (b, C, H, W) in levels, not decided as the target
    after: Tensor,  # (b, C, H, W), decided as the target where crossed
    target: Tensor,  # (b,)
    crossed: Tensor,  # (b,) bool
    close: float,
) -> tuple[Tensor, Tensor]:
    """Halve the way between the two, keeping the boundary within, until the stored pixels are
    close.
    """
    for _ in range(HALVINGS):
        wide = crossed & (_apart(_stored(before), _stored(after)) > close)
        left = _left(wide)
        if not len(left):
            break
        middle = (before[left] + after[left]) / 2
        over = ask(network, to_input(_stored(middle)), torch.float32).argmax(1) == target[left]
        after[left] = _where(wide[left] & over, middle, after[left])
        before[left] = _where(wide[left] & ~over, middle, before[left])
    return before, after


def _uphill(
    network: Network,
    places: Tensor,  # (b, C, H, W) in levels
    target: Tensor | None,  # (b,); None takes the class that each is decided as
) -> tuple[Tensor, Tensor, Tensor]:  # (b,), (b,), (b, C, H, W)
    """Decision, log odds of the target class, and the direction in which these rise, of length 1; 0
    where there is none.

    The log odds z_t − log Σ_{k≠t} exp z_k see every rival class, and have no kink where the
    strongest one changes.
    """
    with torch.enable_grad():
        pixels = to_input(_stored(places)).requires_grad_()
        logits = network(pixels)
        decision = logits.argmax(1)
        chosen = (decision if target is None else target)[:, None]
        odds = (
            logits.gather(1, chosen)
            - logits.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
        )[:, 0]
        (slope,) = torch.autograd.grad(odds.sum(), pixels)
    # A pixel at the end of its range can't go further: left in, it would take up the step's length
    # and go nowhere.
    slope = slope.masked_fill(((places <= 0) & (slope < 0)) | ((places >= 255) & (slope > 0)), 0.0)
    size = slope.flatten(1).square().mean(1).sqrt()
    usable = torch.isfinite(size) & (size > 0)
    return (
        decision,
        odds.detach(),
        _where(usable, slope / size[:, None, None, None], torch.zeros_like(slope)),
    )


def _step(places: Tensor, length: Tensor | float, slope: Tensor) -> Tensor:
    length = length[:, None, None, None] if isinstance(length, Tensor) else length
    return (places + length * slope).clamp(0, 255)


def _stored(places: Tensor) -> Tensor:
    return places.round().to(torch.uint8)


def _apart(one: Tensor, other: Tensor) -> Tensor:  # (b, C, H, W) uint8, twice -> (b,)
    return (one.float() - other.float()).flatten(1).square().mean(1).sqrt()


def _where(
    chosen: Tensor, one: Tensor, other: Tensor
) -> Tensor:  # (b,) bool, (b, C, H, W), (b, C, H, W)
    return torch.where(chosen[:, None, None, None], one, other)


def _left(going: Tensor) -> Tensor:
    """Which walks to compute. On CUDA, asking which ones are left would wait for the device, and
    all go along.
    """
    return (
        going.nonzero()[:, 0]
        if going.device.type == "cpu"
        else torch.arange(len(going), device=going.device)
    )
