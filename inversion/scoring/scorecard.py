"""What a set of images is worth to a distillation, from the teacher alone: no student and no real
data.

    card = score(images, teacher)
    card.values["coverage"], card.overall

`inversion.scoring.scores` says what each figure is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.models import Classifier, as_classifier, as_found
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from distill.tasks.places import count_decisions
from inversion.options import ScoreOptions
from inversion.scoring import measures
from inversion.scoring.answers import (
    Answers,
    boundary_distances,
    first_choice,
    gather_answers,
    steadiness,
)
from inversion.scoring.scores import FEWEST_IMAGES, SCORES
from synthesis_kernels.errors import EchosetError

BINS = 20
"""Of margins, for the histogram."""


@dataclass(frozen=True)
class Scorecard:
    """All that was found out about one set."""

    images: int
    classes: int
    counts: list[int]
    """Decisions per class, one an image or several."""
    raw_counts: list[int] | None
    """The same before filtering."""
    margins: list[int]
    """Decisions by margin, in bins of equal width from 0 to 1."""
    readouts: dict[int, float]
    """The readout's agreement by the number of images it learnt from."""
    values: dict[str, float | None]
    """By the names in `SCORES`; None where a score can't be had."""
    overall: float
    """In [0, 1], for nothing but order."""
    notes: list[str]
    """What was measured on a sample, or not at all."""
    decisions: Tensor
    """(N,) the class that each image counts for, in their order."""

    def document(self) -> dict[str, Any]:
        """Everything but the decisions, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "decisions"}


def score(
    images: Tensor,  # (N, C, H, W) uint8
    teacher: Classifier | nn.Module,
    raw_counts: Sequence[int] | Literal["own"] | None = None,
    options: ScoreOptions = ScoreOptions(),
    runtime: Runtime = Runtime(),
) -> Scorecard:
    """Score a set. `raw_counts` are the teacher's decisions before filtering; "own" where nothing
    was filtered.
    """
    teacher = as_classifier(teacher)
    classes = teacher.spec.classes
    check_images(images, teacher)
    check_counts(raw_counts, classes)
    device = runtime.resolve_device()
    # Sorted by content, so that neither sums nor samples depend on the order in which a set is
    # kept.
    order = content_order(images)
    images = images[order]
    asked = min(options.gradients, len(images))
    compared = min(options.compared, len(images))
    answers, figures = _ask(teacher, images, asked, options.batch, device, runtime.quiet)
    chosen = teacher.task.group(answers.decisions, classes)
    counts = count_decisions(answers.decisions, classes).tolist()
    raw = _before_filtering(raw_counts, counts)
    small = _shrunken(images, options.batch, device)
    figures["coverage_raw"] = None if raw is None else measures.coverage(torch.tensor(raw))
    figures |= _of_answers(answers, counts)
    figures |= _of_features(answers.features, chosen, classes)
    figures |= _of_pixels(small.flatten(1), compared, runtime.quiet)
    readouts: dict[int, float] = {}
    if decides_once(teacher):
        flat = small[:compared].flatten(1)
        figures["neighbour"] = measures.neighbour_agreement(flat, chosen[:compared], classes)
        random_features = measures.random_features(small[:compared])
        readouts = measures.readout_curve(random_features, chosen[:compared], classes)
        figures |= _of_readouts(readouts)
    values = {figure.name: figures.get(figure.name) for figure in SCORES}
    return Scorecard(
        images=len(images),
        classes=classes,
        counts=counts,
        raw_counts=raw,
        margins=torch.histc(answers.margins, BINS, 0, 1).long().tolist(),
        readouts=readouts,
        values=values,
        overall=overall(values, answers.features.shape[1]),
        notes=_notes(len(images), asked, compared, decides_once(teacher)),
        decisions=torch.empty_like(order).index_copy_(0, order, chosen.cpu()),
    )


def _ask(
    teacher: Classifier,
    images: Tensor,  # (N, C, H, W) uint8
    asked: int,
    batch: int,
    device: torch.device,
    quiet: bool,
) -> tuple[Answers, dict[str, float | None]]:
    """All that is asked of the teacher, and the figures that need it at hand, of the first `asked`
    images where they are dear.
    """
    # As found only once everything was asked: the frozen copy looks its statistics up there.
    with as_found(teacher):
        frozen = Frozen(teacher.to(device))
        answers = gather_answers(frozen, images, batch, device, quiet)
        if not decides_once(teacher):
            return answers, {"bn_gap": answers.gap}
        chosen = first_choice(answers.logits[:asked])
        distances = boundary_distances(frozen, images[:asked], batch, device, quiet)
        steady = steadiness(frozen, images[:asked], chosen, batch, device, quiet)
    figures = {
        "bn_gap": answers.gap,
        "boundary_distance": distances.median().item(),
        "steadiness": steady,
    }
    return answers, figures


def decides_once(teacher: Classifier) -> bool:
    """Whether there is one decision an image, as what compares a decision with another's needs."""
    return not teacher.answer_shape[1:]


def overall(values: Mapping[str, float | None], features: int) -> float:
    """One number to put sets in order by, as `OVERALL` says."""
    reached = values["coverage_raw"]
    if reached is None:
        reached = values["coverage"]
    variety = values["vendi"]
    if reached is None or variety is None:
        raise EchosetError("an overall figure needs coverage and vendi; compute them first")
    return math.sqrt(min(reached, 1) * min(variety / features, 1))


def _before_filtering(
    raw_counts: Sequence[int] | Literal["own"] | None, counts: list[int]
) -> list[int] | None:
    """The histogram of decisions before any image was left out, where it is known."""
    if raw_counts is None:
        return None
    return counts if raw_counts == "own" else [int(count) for count in raw_counts]


def _shrunken(images: Tensor, batch: int, device: torch.device) -> Tensor:  # (N, C, h, w) in [0, 1]
    parts = [measures.shrink(part.to(device).float() / 255) for part in images.split(batch)]
    return torch.cat(parts)


def _notes(images: int, asked: int, compared: int, once: bool) -> list[str]:
    """What was measured on a sample, or not at all."""
    notes = []
    if not once:
        notes.append(
            "coverage, soft balance, mutual information, class pairs and margins: of every "
            "pixel's decision; within a class: of the images that count for it"
        )
        notes.append(
            "left out, as they compare one decision an image: distance to the boundary, "
            "steadiness, neighbours, readout"
        )
    if once and asked < images:
        notes.append(f"distance to the boundary, steadiness: of {asked:,} of the images")
    if compared < images:
        compares = "rank of pixels, neighbours, readout" if once else "rank of pixels"
        notes.append(
            f"{compares}: of {compared:,} of the images; so many compared with all for duplicates"
        )
    return notes


def _of_answers(answers: Answers, counts: Sequence[int]) -> dict[str, float]:
    margin = answers.margins
    chances = answers.logits.double().softmax(1)
    soft_balance, mutual_information = measures.soft_coverage(chances, answers.entropies)
    pairs_hit, pairs_effective = measures.spread_of_pairs(answers.pairs, len(counts))
    return {
        "coverage": measures.coverage(torch.tensor(counts)),
        "soft_balance": soft_balance,
        "mutual_information": mutual_information,
        "pairs_hit": pairs_hit,
        "pairs_effective": pairs_effective,
        "margin": margin.mean().item(),
        "unsure": (margin < 0.5).double().mean().item(),
    }


def _of_features(
    features: Tensor,  # (N, D)
    chosen: Tensor,  # (N,)
    classes: int,
) -> dict[str, float]:
    return {
        "rank": measures.effective_rank(features),
        "class_rank": measures.within_classes(measures.effective_rank, features, chosen, classes),
        "vendi": measures.vendi(features),
        "class_vendi": measures.within_classes(measures.vendi, features, chosen, classes),
    }


def _of_pixels(
    flat: Tensor,  # (N, D)
    compared: int,
    quiet: bool,
) -> dict[str, float]:
    return {
        "pixel_rank": measures.effective_rank(flat[:compared]),
        "layout": measures.shared_layout(flat),
        "duplicates": measures.duplicate_rate(flat, compared, quiet=quiet),
    }


def _of_readouts(readouts: dict[int, float]) -> dict[str, float]:
    *_, half, whole = readouts.values()
    return {"readout": whole, "readout_gain": whole - half}


def check_images(images: Tensor, teacher: Classifier, name: str = "the set") -> None:
    """Refuse what can't be scored."""
    spec = teacher.spec
    shape = tuple(images.shape)
    if images.dtype is not torch.uint8 or shape[1:] != spec.shape:
        raise EchosetError(
            f"{name} has {images.dtype} images {shape}; the teacher takes uint8 (N, "
            f"{', '.join(map(str, spec.shape))}): "
            "read them with load_images(path, channels=…, size=…)"
        )
    if len(images) < FEWEST_IMAGES:
        raise EchosetError(
            f"{name} has {len(images)} images, too few to score; give {FEWEST_IMAGES} at least"
        )


def check_counts(raw_counts: Any, classes: int) -> None:
    """Refuse what can't be decisions before filtering."""
    if raw_counts is None or (isinstance(raw_counts, str) and raw_counts == "own"):
        return
    whole = isinstance(raw_counts, list | tuple) and all(
        type(count) is int and count >= 0 for count in raw_counts
    )
    if not whole or len(raw_counts) != classes or not sum(raw_counts):
        raise EchosetError(
            f"raw_counts should be {classes} whole numbers, one a class and not all 0, got "
            f"{raw_counts!r:.200}"
        )


def content_order(images: Tensor) -> Tensor:  # (N, C, H, W) uint8 -> (N,)
    """An order as good as random that follows from the pixels alone; equal images lie side by
    side.
    """
    random = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (images[0].numel(),), generator=random)
    # Integer sums wrap around, and so mix every pixel into the leading bits.
    keys = torch.cat(
        [(part.flatten(1).cpu().long() * factors).sum(1) for part in images.split(1000)]
    )
    return keys.argsort(stable=True)
