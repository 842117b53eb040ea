"""How well a classifier does on labelled images, how sure it is, and how near it is to its
teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TypeAlias

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
from distill.tally import Tally, part_size
from distill.tasks import Figures
from distill.tasks.places import decide, require_answers_fit
from distill.views import at_once, to_input
from synthesis_kernels.backend import forward_pass, free_cycles
from synthesis_kernels.errors import EchosetError

BATCH = 500
"""Images that a network is asked about at once, at most."""

Answers: TypeAlias = Callable[[slice, StepProgress, int], Tensor]
"""A network's answers, (B, K, *places) on the device, to a part of the data; with the bar that is
told of it, and how far that is before.
"""

Look: TypeAlias = Callable[[Tensor, Tensor | None], None]
"""Told the decisions, (B, *places), on each part of the data, and the teacher's."""


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
    batch: int = BATCH,
    title: str = "evaluating",
    quiet: bool = True,
) -> Tensor:  # (N, K, *places) float32, on the device
    """Logits in float32 for stored images, in evaluation mode. All are kept, so that maps of too
    many images are refused.
    """
    remedy = "give fewer at a time, such as a part of the data"
    require_answers_fit(len(images), classifier.answer_shape, remedy)
    network = _ready(classifier, device)
    with StepProgress(title, len(images), quiet) as progress:
        return _ask(network, images, device, min(batch, at_once(images)), progress)


def _ready(network: Classifier, device: torch.device) -> Classifier:
    """The network on the device, in evaluation mode."""
    free_cycles(device)
    return on_device(network, device).eval()


def _ask(
    network: Classifier,
    images: Tensor,  # (N, C, H, W) uint8
    device: torch.device,
    batch: int,
    progress: StepProgress,
    done: int = 0,
) -> Tensor:  # (N, K, *places) float32
    """Logits, batch after batch; `done` is what the progress had before."""
    outputs = []
    with torch.inference_mode(), forward_pass(device, torch.float32):
        for start in range(0, len(images), batch):
            outputs.append(network(to_input(images[start : start + batch].to(device))).float())
            progress.update(done + min(start + batch, len(images)))
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
    look: Look | None = None,
) -> Evaluation:
    """Everything that follows from the answers; with a `teacher` agreement, and on `attacks` of the
    images, evenly spread over the data, boundary similarity and adversarial transfer. Folders of
    classes are matched with the classifier's own (`distill.data.matching`).

    Figures are summed up part by part, and no answer is kept: the data may have any size. Who needs
    each decision gives a `look`.
    """
    teacher = None if teacher is None else as_classifier(teacher)
    classifier = as_student(classifier, {} if teacher is None else teacher.input)
    data = match_classes(data, classifier.spec)
    labels = check_fit(classifier, data)
    check_attacks(classifier, attacks)
    if teacher is not None:
        _check_alike(classifier, teacher)
    device = runtime.resolve_device()
    with as_found(classifier), as_found(teacher):
        own = _answers(classifier, data, device, logits, "logits")
        other = None
        if teacher is not None:
            other = _answers(teacher, data, device, teacher_logits, "teacher_logits")
        tally = _count(classifier, data, labels, own, other, runtime, look)
        result = Evaluation(images=len(data), **tally.figures(compared=teacher is not None))
        if teacher is None or not attacks:
            return result
        return _attack(result, classifier, teacher, data, labels, attacks, runtime)


def _attack(
    result: Evaluation,
    classifier: Classifier,
    teacher: Classifier,
    data: Images,
    labels: Tensor,  # (N,)
    attacks: int,
    runtime: Runtime,
) -> Evaluation:
    """The result with what so many images, pushed over boundaries, tell."""
    device = runtime.resolve_device()
    some = torch.linspace(0, len(data) - 1, min(attacks, len(data))).long()
    images = to_input(data.images[some].to(device))
    networks = (Frozen(classifier.to(device)), Frozen(teacher.to(device)))
    similarity = boundary_similarity(*networks, images, runtime.quiet)
    transfer = adversarial_transfer(*networks, images, labels[some].to(device))
    return replace(result, **asdict(similarity), **asdict(transfer))


def _answers(
    network: Classifier, data: Images, device: torch.device, known: Tensor | None, name: str
) -> Answers:
    """The network asked, or what is `known` of its answers already, which errors call `name`."""
    expected = (len(data), *network.answer_shape)
    if known is None:
        network = _ready(network, device)
        batch = min(BATCH, at_once(data.images))

        def ask(part: slice, progress: StepProgress, done: int) -> Tensor:
            return _ask(network, data.images[part], device, batch, progress, done)

        return ask
    if known.shape != expected:
        raise EchosetError(f"{name} are {tuple(known.shape)}, expected {expected}")
    return lambda part, *_: known[part].to(device)


def _count(
    classifier: Classifier,
    data: Images,
    labels: Tensor,  # (N, *places)
    own: Answers,
    other: Answers | None,
    runtime: Runtime,
    look: Look | None,
) -> Tally:
    """Everything that is counted, part by part: of few images with small answers all are one part,
    and of label maps a part is a batch or some.
    """
    device = runtime.resolve_device()
    tally = Tally(classifier.task, classifier.spec.classes, device)
    size = part_size(classifier.answer_shape, min(BATCH, at_once(data.images)))
    networks = [own] if other is None else [own, other]
    done = 0
    with StepProgress("evaluating", len(data) * len(networks), runtime.quiet) as progress:
        for start in range(0, len(data), size):
            part = slice(start, start + size)
            answers = []
            for ask in networks:
                answers.append(ask(part, progress, done))
                done += len(answers[-1])
            decisions = [decide(answer) for answer in answers]
            beside = decisions[1] if other is not None else None
            tally.add(answers[0], labels[part].to(device), decisions[0], beside)
            if look is not None:
                look(decisions[0], beside)
    return tally


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
