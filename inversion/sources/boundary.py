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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.loop import StepProgress
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.tasks.places import decide
from distill.views import ask, at_once, to_input
from inversion.options import BoundaryOptions
from synthesis_kernels.errors import EchosetError

HALVINGS = 16
"""Of at most 255 levels: after eight no stored pixel of a pair differs by more than one, so most
end earlier.
"""


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
    require_one_decision(teacher, "the boundary attack", "give it a classifier of whole images")
    _check_input(teacher, images, targets)
    teacher.settle()
    device = teacher.mean.device
    network = Frozen(teacher.eval())
    images = images.to(device)
    flat = targets.to(device).flatten()
    starts = torch.arange(len(flat), device=device) // targets.shape[1]
    at_a_time = min(batch, at_once(images, 256))
    kinds: list[Tensor] = []
    labels: list[Tensor] = []
    found: list[Tensor] = []
    done = 0
    with StepProgress("walking to boundaries", len(flat), quiet) as progress:
        for start, target in zip(starts.split(at_a_time), flat.split(at_a_time), strict=True):
            part = _attack(network, images[start], target, options)  # (4, b, C, H, W)
            decisions = torch.stack([_decisions(teacher, kind) for kind in part])
            kinds.append(part)
            labels.append(decisions)
            found.append(_is_found(part, decisions, target, options.close))
            done += len(target)
            progress.update(done)
    before, after, deep_before, deep_after = torch.cat(kinds, 1).unflatten(1, targets.shape)
    return BoundarySamples(
        before,
        after,
        deep_before,
        deep_after,
        labels=torch.cat(labels, 1).T.unflatten(0, targets.shape),
        targets=flat.view(targets.shape),
        found=torch.cat(found).view(targets.shape),
    )


def require_one_decision(teacher: Classifier, needed_by: str, remedy: str) -> None:
    """Refuse a teacher that decides at several places of an image: no walk leads from one decision
    to another.
    """
    places = teacher.answer_shape[1:]
    if places:
        shape = " × ".join(map(str, places))
        raise EchosetError(
            f"{needed_by} walks to where the decision for an image changes, and "
            f"{teacher.spec.model} ({teacher.spec.task}) decides at {shape} places of it; {remedy}"
        )


def _check_input(teacher: Classifier, images: Tensor, targets: Tensor) -> None:
    spec = teacher.spec
    shape = spec.shape
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


def _decisions(network: nn.Module, pixels: Tensor) -> Tensor:  # (b, C, H, W) uint8 -> (b,)
    return decide(ask(network, to_input(pixels), torch.float32))


def _is_found(
    kinds: Tensor,  # (4, b, C, H, W) uint8
    decisions: Tensor,  # (4, b)
    target: Tensor,  # (b,)
    close: float,
) -> Tensor:  # (b,) bool
    """Whether a walk ended with two close images on either side, and two deeper ones."""
    before, after, deep_before, deep_after = decisions == target
    is_close = _apart(kinds[0], kinds[1]) <= close
    return ~before & after & ~deep_before & deep_after & is_close


def _attack(
    network: nn.Module, images: Tensor, target: Tensor, options: BoundaryOptions
) -> Tensor:  # (4, b, C, H, W) uint8
    """The four samples of each walk; where one failed, whatever it has."""
    before, after, crossed = _walk(network, images.float(), target, options)
    pair = torch.cat(_close_in(network, before, after, target, crossed, options.close))
    _, _, slope = _uphill(network, pair, None)
    deep = _step(pair, options.deeper, slope)
    return torch.cat([_stored(pair), _stored(deep)]).unflatten(0, (4, -1))


def _walk(
    network: nn.Module,
    images: Tensor,  # (b, C, H, W) in levels
    target: Tensor,  # (b,)
    options: BoundaryOptions,
) -> tuple[Tensor, Tensor, Tensor]:  # (b, C, H, W), (b, C, H, W), (b,) bool
    """Uphill until the teacher decides for the target: the last place before, the first one after,
    and whether it did.
    """
    here = images.clone()
    after = images.clone()
    slope = torch.zeros_like(images)
    odds = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    # Arriving at the start counts as a step that helped.
    length = torch.full_like(odds, options.first_step / options.growth)
    crossed = torch.zeros_like(target, dtype=torch.bool)
    finished = torch.zeros_like(target, dtype=torch.bool)
    for _ in range(options.steps + 1):
        left = _left(~finished)
        if not len(left):
            break
        trial = _step(here[left], length[left], slope[left])
        decision, gained, uphill = _uphill(network, trial, target[left])
        going = ~finished[left]
        over = going & (decision == target[left])
        # Levels may round to where they were: no loss, and no reason to stop.
        helped = going & ~over & (gained >= odds[left])
        after[left] = _where(over, trial, after[left])
        here[left] = _where(helped, trial, here[left])
        slope[left] = _where(helped, uphill, slope[left])
        odds[left] = torch.where(helped, gained, odds[left])
        length[left] *= torch.where(helped, options.growth, 0.5)
        crossed[left] |= over
        # With no way uphill, none will be found.
        finished[left] |= over | ~slope[left].flatten(1).any(1)
    return here, after, crossed


def _close_in(
    network: nn.Module,
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
        over = _decisions(network, _stored(middle)) == target[left]
        after[left] = _where(wide[left] & over, middle, after[left])
        before[left] = _where(wide[left] & ~over, middle, before[left])
    return before, after


def _uphill(
    network: nn.Module,
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
        decision = decide(logits)
        chosen = (decision if target is None else target)[:, None]
        rivals = logits.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
        odds = (logits.gather(1, chosen) - rivals)[:, 0]
        (slope,) = torch.autograd.grad(odds.sum(), pixels)
    # A pixel at the end of its range can't go further: left in, it would take up the step's length
    # and go nowhere.
    stuck = ((places <= 0) & (slope < 0)) | ((places >= 255) & (slope > 0))
    slope = slope.masked_fill(stuck, 0.0)
    size = slope.flatten(1).square().mean(1).sqrt()
    usable = torch.isfinite(size) & (size > 0)
    direction = _where(usable, slope / size[:, None, None, None], torch.zeros_like(slope))
    return decision, odds.detach(), direction


def _step(places: Tensor, length: Tensor | float, slope: Tensor) -> Tensor:  # (b, C, H, W)
    if isinstance(length, Tensor):
        length = length[:, None, None, None]
    return (places + length * slope).clamp(0, 255)


def _stored(places: Tensor) -> Tensor:
    return places.round().to(torch.uint8)


def _apart(one: Tensor, other: Tensor) -> Tensor:  # (b, C, H, W) uint8, twice -> (b,)
    return (one.float() - other.float()).flatten(1).square().mean(1).sqrt()


def _where(
    chosen: Tensor, one: Tensor, other: Tensor
) -> Tensor:  # (b,) bool, (b, C, H, W), (b, C, H, W)
    return torch.where(chosen[:, None, None, None], one, other)


def _left(going: Tensor) -> Tensor:  # (b,) bool -> (≤ b,)
    """Which walks to compute. On CUDA, asking which ones are left would wait for the device, and
    all go along.
    """
    if going.device.type == "cpu":
        return going.nonzero()[:, 0]
    return torch.arange(len(going), device=going.device)
