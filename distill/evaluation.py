"""How well a classifier does on labelled images, how sure it is, and how near it is to its
teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.images import Images
from distill.lessons import check_label_shape
from distill.loop import StepProgress
from distill.methods.boundary import push_over
from distill.models import Classifier, as_found
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from distill.tasks.places import count_decisions, decide
from distill.views import at_once, to_input
from synthesis_kernels.backend import forward_pass, free_cycles
from synthesis_kernels.errors import EchosetError

PUSHES = 20  # steps towards a boundary, at most
BINS = 10  # of confidence, for the calibration error
PGD_RADIUS, PGD_RATE, PGD_STEPS = 0.031, 0.003, 20


@dataclass(frozen=True)
class Evaluation:
    """Figures on one set of labelled images."""

    accuracy: float
    """Share of decisions that are right."""
    top5: float | None
    """Share of images whose class is among the five likeliest; None with five classes or fewer."""
    per_class: list[float | None]
    """Accuracy on each true class; None where the data has none of it."""
    ece: float
    """Expected calibration error: mean over images of |accuracy − confidence| of their bin, ten
    equal bins of confidence.
    """
    entropy: float
    """Mean entropy of the answers, in nats."""
    images: int
    agreement: float | None = None
    """Share of images on which the teacher, if one was given, chose the same class."""
    magnitude_similarity: float | None = None
    """MagSim: mean min/max of the lengths of both networks' pushes over the boundary to each other
    class; 1 = as far away.

    The pushes go by first-order distances, so that networks of small and of large logits are
    measured alike.
    """
    angle_similarity: float | None = None
    """AngSim: mean cosine between these pushes; 1 = boundaries in the same direction."""
    boundary_pairs: int = 0
    """Pairs of an image and another class that both networks could be pushed to, of which the two
    means are.
    """
    transfer: float | None = None
    """Share of images both know whose adversarial form, made on the teacher (PGD, .031), fools the
    classifier.
    """
    transfer_teacher: float | None = None
    """The same for the teacher itself, the most that could transfer."""
    own: dict[str, float] = field(default_factory=dict)
    """Figures of the task's own, such as the mean IoU of a segmentation."""


def predict(
    classifier: Classifier,
    images: Tensor,  # (N, C, H, W) uint8
    device: torch.device,
    batch: int = 500,
    title: str = "evaluating",
    quiet: bool = True,
) -> Tensor:  # (N, K, *places) float32, on the device
    """Logits in float32 for stored images, in evaluation mode."""
    free_cycles(device)
    classifier = classifier.to(device, memory_format=torch.channels_last).eval()
    outputs, batch = [], min(batch, at_once(images.shape[-1]))
    fast = forward_pass(device, torch.float32)
    with torch.inference_mode(), fast, StepProgress(title, len(images), quiet) as progress:
        for start in range(0, len(images), batch):
            outputs.append(classifier(to_input(images[start : start + batch].to(device))).float())
            progress.update(min(start + batch, len(images)))
    return torch.cat(outputs)


def check_fit(classifier: Classifier, data: Images) -> None:
    """Refuse data whose shape or labels the model can't answer for."""
    spec, shape = classifier.spec, tuple(data.images.shape[1:])
    if shape != (spec.channels, spec.size, spec.size):
        raise EchosetError(
            f"{data.name} has images of shape {shape}, the model takes "
            f"{(spec.channels, spec.size, spec.size)}"
        )
    if data.labels is None:
        raise EchosetError(f"{data.name} has no labels to judge by")
    if not len(data):
        raise EchosetError(f"{data.name} has no images")
    check_label_shape(data.labels, classifier, data.name)
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= spec.classes:
        raise EchosetError(
            f"{data.name} has labels from {low} to {high}, the model knows classes 0 to "
            f"{spec.classes - 1}"
        )


def evaluate(
    classifier: Classifier,
    data: Images,
    teacher: Classifier | None = None,
    attacks: int = 0,
    # (N, K, *places) where the teacher's answers to these images are known already
    teacher_logits: Tensor | None = None,
    runtime: Runtime = Runtime(),
) -> Evaluation:
    """Everything that follows from the answers; with a `teacher` agreement, and on `attacks` of the
    images, evenly spread over the data, boundary similarity and adversarial transfer.
    """
    check_fit(classifier, data)
    if attacks and classifier.answer_shape[1:]:
        raise EchosetError(
            f"attacks push an image over one decision's boundary, and {classifier.spec.task} has "
            "several an image; leave attacks at 0"
        )
    if attacks < 0:
        raise EchosetError(f"attacks must be at least 0, got {attacks}")
    for name in ("channels", "size", "classes", "task") if teacher is not None else ():
        mine, theirs = getattr(classifier.spec, name), getattr(teacher.spec, name)
        if mine != theirs:
            raise EchosetError(
                f"a network of {name} {mine} and one of {name} {theirs} can't be compared on the "
                "same images"
            )
    where, classes, quiet = runtime.resolve_device(), classifier.spec.classes, runtime.quiet
    labels = data.labels.to(where)
    with as_found(classifier), as_found(teacher):
        logits = predict(classifier, data.images, where, quiet=quiet)
        chosen = decide(logits)
        right = chosen == labels
        totals = count_decisions(labels, classes).tolist()
        rights = count_decisions(labels[right], classes).tolist()
        figures: dict[str, float | int | None] = {}
        if teacher is not None:
            teacher.to(where)
            if teacher_logits is None:
                teacher_logits = predict(
                    teacher, data.images, where, title="asking the teacher", quiet=quiet
                )
            elif tuple(teacher_logits.shape) != tuple(logits.shape):
                raise EchosetError(
                    f"teacher_logits are {tuple(teacher_logits.shape)}, expected "
                    f"{tuple(logits.shape)}"
                )
            agreed = decide(teacher_logits.to(where)) == chosen
            figures["agreement"] = agreed.float().mean().item()
            if attacks:
                some = torch.linspace(0, len(data) - 1, min(attacks, len(data))).long()
                images = to_input(data.images[some].to(where))
                networks = Frozen(classifier), Frozen(teacher)
                figures |= boundary_similarity(*networks, images, quiet)
                figures |= adversarial_transfer(*networks, images, labels[some.to(where)])
    return Evaluation(
        accuracy=right.float().mean().item(),
        top5=_share_in_first(5, logits, labels) if classes > 5 else None,
        per_class=[
            correct / total if total else None
            for correct, total in zip(rights, totals, strict=True)
        ],
        ece=calibration_error(logits, labels),
        entropy=-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean().item(),
        images=len(data),
        own=classifier.task.measure(logits, labels),
        **figures,
    )


def _share_in_first(count: int, logits: Tensor, labels: Tensor) -> float:
    """Share of decisions whose class is among the `count` likeliest."""
    first = logits.topk(count, 1).indices
    return (first == labels.unsqueeze(1)).any(1).float().mean().item()


def calibration_error(
    logits: Tensor,  # (N, K, *places)
    labels: Tensor,  # (N, *places)
    bins: int = BINS,
) -> float:
    """Σ over bins of n_b/N·|accuracy_b − confidence_b|."""
    confidence, chosen = logits.softmax(1).max(1)
    place = (confidence * bins).long().clamp_max(bins - 1).flatten()
    surplus = (confidence.double() - (chosen == labels).double()).flatten()
    sums = torch.zeros(bins, dtype=torch.double, device=logits.device).index_add_(0, place, surplus)
    return (sums.abs().sum() / labels.numel()).item()


def boundary_similarity(
    one: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    images: Tensor,  # (N, C, H, W) in [0, 1]
    quiet: bool = True,
) -> dict[str, float | int | None]:
    """MagSim and AngSim over the images on which both agree, and every other class."""
    with torch.no_grad():
        answers = one(images)
        base = answers.argmax(1)
        agreed = base == other(images).argmax(1)
    images, base, classes = images[agreed], base[agreed], answers.shape[1]
    lengths, cosines = [], []
    with StepProgress("boundary", classes - 1, quiet) as progress:
        for further in range(1, classes):
            target = (base + further) % classes
            (ours, crossed), (theirs, both) = (
                push_over(network, images, base, target, None, PUSHES) for network in (one, other)
            )
            here = crossed & both
            ours, theirs = (ours - images)[here].flatten(1), (theirs - images)[here].flatten(1)
            sizes = torch.stack([ours.norm(dim=1), theirs.norm(dim=1)])
            lengths.append(sizes.amin(0) / sizes.amax(0).clamp_min(1e-12))
            cosines.append(F.cosine_similarity(ours, theirs, dim=1))
            progress.update(further)
    lengths, cosines = torch.cat(lengths), torch.cat(cosines)
    found = {"boundary_pairs": len(lengths), "magnitude_similarity": None, "angle_similarity": None}
    if len(lengths):
        found |= {
            "magnitude_similarity": lengths.mean().item(),
            "angle_similarity": cosines.mean().item(),
        }
    return found


def adversarial_transfer(
    classifier: Callable[[Tensor], Tensor],
    teacher: Callable[[Tensor], Tensor],
    images: Tensor,  # (N, C, H, W) in [0, 1]
    labels: Tensor,  # (N,)
) -> dict[str, float | None]:
    """PGD within ±.031, 20 steps of .003, on the teacher; how often it fools the classifier, of the
    images both know.
    """
    with torch.no_grad():
        known = (classifier(images).argmax(1) == labels) & (teacher(images).argmax(1) == labels)
    images, labels = images[known], labels[known]
    if not len(images):
        return {"transfer": None, "transfer_teacher": None}
    moved = images.clone()
    for _ in range(PGD_STEPS):
        moved.requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(F.cross_entropy(teacher(moved), labels), moved)
        moved = (
            (moved.detach() + PGD_RATE * slope.sign())
            .clamp(images - PGD_RADIUS, images + PGD_RADIUS)
            .clamp(0, 1)
        )
    with torch.no_grad():
        fooled = [
            (network(moved).argmax(1) != labels).float().mean().item()
            for network in (classifier, teacher)
        ]
    return {"transfer": fooled[0], "transfer_teacher": fooled[1]}
