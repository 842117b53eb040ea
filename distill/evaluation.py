"""How well a classifier does on labelled images, how sure it is, and how near it is to its
teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from distill.boundaries import adversarial_transfer, boundary_similarity
from distill.data.images import Images
from distill.data.matching import match_classes
from distill.lessons import check_label_shape, check_label_values
from distill.loop import StepProgress
from distill.models import Classifier, as_classifier, as_found
from distill.models.classifier import on_device
from distill.models.frozen import Frozen
from distill.models.wrapping import as_student
from distill.runtime import Runtime
from distill.tasks import Figures
from distill.tasks.places import count_decisions, decide, require_answers_fit
from distill.views import at_once, to_input
from synthesis_kernels.backend import forward_pass, free_cycles
from synthesis_kernels.errors import EchosetError

BINS = 10
"""Of confidence, for the calibration error."""
AT_ONCE = 2**24
"""Numbers of answers to label maps that are looked at together."""


@dataclass(frozen=True)
class Evaluation:
    """Figures on one set of labelled images."""

    accuracy: float
    """Share of decisions that are right. Here and below, places of a label map where nothing is
    known count nowhere.
    """
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
    own: Figures = field(default_factory=dict)
    """Figures of the task's own, such as the mean IoU of a segmentation."""


def predict(
    classifier: Classifier,
    images: Tensor,  # (N, C, H, W) uint8
    device: torch.device,
    batch: int = 500,
    title: str = "evaluating",
    quiet: bool = True,
) -> Tensor:  # (N, K, *places) float32, on the device
    """Logits in float32 for stored images, in evaluation mode. All are kept, so that maps of too
    many images are refused.
    """
    remedy = "give fewer at a time, such as a part of the data"
    require_answers_fit(len(images), classifier.answer_shape, remedy)
    free_cycles(device)
    classifier = on_device(classifier, device).eval()
    batch = min(batch, at_once(images))
    outputs = []
    fast = forward_pass(device, torch.float32)
    with torch.inference_mode(), fast, StepProgress(title, len(images), quiet) as progress:
        for start in range(0, len(images), batch):
            outputs.append(classifier(to_input(images[start : start + batch].to(device))).float())
            progress.update(min(start + batch, len(images)))
    return torch.cat(outputs)


def check_fit(classifier: Classifier, data: Images) -> Tensor:
    """Refuse data whose shape or labels the model can't answer for; gives the labels."""
    spec = classifier.spec
    shape = tuple(data.images.shape[1:])
    if shape != spec.shape:
        raise EchosetError(f"{data.name} has images of shape {shape}, the model takes {spec.shape}")
    if data.labels is None:
        raise EchosetError(f"{data.name} has no labels to judge by")
    if not len(data):
        raise EchosetError(f"{data.name} has no images")
    check_label_shape(data.labels, classifier, data.name)
    check_label_values(data.labels, spec.classes, data.name, "the model")
    return data.labels


def evaluate(
    classifier: Classifier | nn.Module,
    data: Images,
    teacher: Classifier | nn.Module | None = None,
    attacks: int = 0,
    # (N, K, *places) where the teacher's answers to these images are known already
    teacher_logits: Tensor | None = None,
    runtime: Runtime = Runtime(),
    # (N, K, *places) where the classifier's own are known already
    logits: Tensor | None = None,
) -> Evaluation:
    """Everything that follows from the answers; with a `teacher` agreement, and on `attacks` of the
    images, evenly spread over the data, boundary similarity and adversarial transfer. Folders of
    classes are matched with the classifier's own (`distill.data.matching`).
    """
    teacher = None if teacher is None else as_classifier(teacher)
    classifier = as_student(classifier, {} if teacher is None else teacher.input)
    data = match_classes(data, classifier.spec)
    labels = check_fit(classifier, data)
    check_attacks(classifier, attacks)
    if teacher is not None:
        _check_alike(classifier, teacher)
    device = runtime.resolve_device()
    labels = labels.to(device)
    with as_found(classifier), as_found(teacher):
        if logits is None:
            logits = predict(classifier, data.images, device, quiet=runtime.quiet)
        result = _of_answers(classifier, logits, labels)
        if teacher is None:
            return result
        teacher.to(device)
        if teacher_logits is None:
            title = "asking the teacher"
            teacher_logits = predict(teacher, data.images, device, title=title, quiet=runtime.quiet)
        elif teacher_logits.shape != logits.shape:
            given = tuple(teacher_logits.shape)
            raise EchosetError(f"teacher_logits are {given}, expected {tuple(logits.shape)}")
        agreed = decide(teacher_logits.to(device)) == decide(logits)
        agreed = agreed[labels >= 0]
        result = replace(result, agreement=agreed.float().mean().item())
        if not attacks:
            return result
        some = torch.linspace(0, len(data) - 1, min(attacks, len(data))).long()
        images = to_input(data.images[some].to(device))
        networks = (Frozen(classifier), Frozen(teacher))
        similarity = boundary_similarity(*networks, images, runtime.quiet)
        transfer = adversarial_transfer(*networks, images, labels[some.to(device)])
        return replace(result, **asdict(similarity), **asdict(transfer))


def _of_answers(classifier: Classifier, logits: Tensor, labels: Tensor) -> Evaluation:
    """What follows from a network's answers alone."""
    classes = classifier.spec.classes
    right = decide(logits) == labels
    totals = count_decisions(labels, classes).tolist()
    rights = count_decisions(labels[right], classes).tolist()
    per_class: list[float | None] = []
    for correct, total in zip(rights, totals, strict=True):
        per_class.append(correct / total if total else None)
    return Evaluation(
        accuracy=right[labels >= 0].float().mean().item(),
        top5=_share_in_first(5, logits, labels) if classes > 5 else None,
        per_class=per_class,
        ece=calibration_error(logits, labels),
        entropy=_mean_entropy(logits, labels),
        images=len(labels),
        own=classifier.task.measure(logits, labels),
    )


def check_attacks(classifier: Classifier, attacks: int) -> None:
    """Refuse attacks on networks that decide more than once an image."""
    if attacks and classifier.answer_shape[1:]:
        raise EchosetError(
            f"attacks push an image over one decision's boundary, and {classifier.spec.task} has "
            "several an image; leave attacks at 0"
        )
    if attacks < 0:
        raise EchosetError(f"attacks must be at least 0, got {attacks}")


def _check_alike(classifier: Classifier, teacher: Classifier) -> None:
    """Refuse two networks that can't answer to the same images."""
    for name in ("channels", "size", "classes", "task"):
        own = getattr(classifier.spec, name)
        other = getattr(teacher.spec, name)
        if own != other:
            raise EchosetError(
                f"a network of {name} {own} and one of {name} {other} can't be compared on the "
                "same images"
            )


def _share_in_first(count: int, logits: Tensor, labels: Tensor) -> float:
    """Share of decisions whose class is among the `count` likeliest."""
    hits = []
    for rows, truth in known_rows(logits, labels):
        first = rows.topk(count, 1).indices
        hits.append((first == truth.unsqueeze(1)).any(1))
    return torch.cat(hits).float().mean().item()


def _mean_entropy(logits: Tensor, labels: Tensor) -> float:
    """Of the answers, in nats."""
    sums = [
        (rows.softmax(1) * rows.log_softmax(1)).sum(1) for rows, _ in known_rows(logits, labels)
    ]
    return -torch.cat(sums).mean().item()


def calibration_error(
    logits: Tensor,  # (N, K, *places)
    labels: Tensor,  # (N, *places)
    bins: int = BINS,
) -> float:
    """Σ over bins of n_b/N·|accuracy_b − confidence_b|."""
    confidences = []
    hits = []
    for rows, truth in known_rows(logits, labels):
        surest, chosen = rows.softmax(1).max(1)
        confidences.append(surest)
        hits.append(chosen == truth)
    confidence = torch.cat(confidences)
    place = (confidence * bins).long().clamp_max(bins - 1)
    surplus = confidence.double() - torch.cat(hits).double()
    sums = torch.zeros(bins, dtype=torch.double, device=logits.device).index_add_(0, place, surplus)
    return (sums.abs().sum() / len(confidence)).item()


def known_rows(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Answers (M, K) and labels (M,) of the places that are known: of label maps in parts, so that
    what is computed of them takes little memory.
    """
    if labels.ndim == 1:
        yield logits, labels
        return
    images = max(AT_ONCE // logits[0].numel(), 1)
    for some, truth in zip(logits.split(images), labels.split(images), strict=True):
        known = truth >= 0
        yield some.movedim(1, -1)[known], truth[known]
