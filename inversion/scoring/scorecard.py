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
from torch import Tensor

from distill.loop import StepProgress
from distill.models import Classifier, as_found
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from distill.taps import Taps, find_stages
from distill.views import to_input
from inversion.options import ScoreOptions
from inversion.scoring import measures
from inversion.scoring.scores import SCORES
from inversion.teacher import trained_views
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.views import ViewPlan, views

FEWEST = 10  # images a set must have for any of this to mean something
BINS = 20  # of margins, for the histogram


@dataclass(frozen=True)
class Scorecard:
    """All that was found out about one set."""

    images: int
    classes: int
    counts: list[int]
    """Images per class, as the teacher decides."""
    raw_counts: list[int] | None
    """The same before filtering."""
    margins: list[int]
    """Images by margin, in bins of equal width from 0 to 1."""
    readouts: dict[int, float]
    """The readout's agreement by the number of images it learnt from."""
    values: dict[str, float | None]
    """By the names in `SCORES`; None where a score can't be had."""
    overall: float
    """In [0, 1], for nothing but order."""
    notes: list[str]
    """What was measured on a sample."""
    decisions: Tensor
    """(N,) the teacher's class for each image, in their order."""

    def document(self) -> dict[str, Any]:
        """Everything but the decisions, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "decisions"}


def overall(values: Mapping[str, float | None], features: int) -> float:
    """One number to put sets in order by, as `OVERALL` says."""
    reached = values["coverage"] if values["coverage_raw"] is None else values["coverage_raw"]
    return math.sqrt(min(reached, 1) * min(values["vendi"] / features, 1))


def score(
    images: Tensor,  # (N, C, H, W) uint8
    teacher: Classifier,
    raw_counts: Sequence[int] | Literal["own"] | None = None,
    options: ScoreOptions = ScoreOptions(),
    runtime: Runtime = Runtime(),
) -> Scorecard:
    """Score a set. `raw_counts` are the teacher's decisions before filtering; "own" where nothing
    was filtered.
    """
    check_images(images, teacher)
    check_counts(raw_counts, teacher.spec.classes)
    check_options(options)
    where, classes, quiet = runtime.resolve_device(), teacher.spec.classes, runtime.quiet
    # Sorted by content, so that neither sums nor samples depend on the order in which a set is
    # kept.
    order = content_order(images)
    images = images[order]
    asked, compared = min(options.gradients, len(images)), min(options.compared, len(images))
    with as_found(
        teacher
    ):  # until everything was asked: the frozen copy looks its statistics up there
        frozen = Frozen(teacher.to(where))
        logits, features, gap = ask(frozen, images, options.batch, where, quiet)
        chosen = logits.topk(2, 1).indices[:, 0]
        distances = boundary_distances(frozen, images[:asked], options.batch, where, quiet)
        steady = steadiness(frozen, images[:asked], chosen[:asked], options.batch, where, quiet)
    counts = torch.bincount(chosen, minlength=classes).tolist()
    raw = counts if raw_counts == "own" else raw_counts and list(raw_counts)
    small = torch.cat(
        [measures.shrink(part.to(where).float() / 255) for part in images.split(options.batch)]
    )
    readouts = measures.readout_curve(
        measures.random_features(small[:compared]), chosen[:compared], classes
    )
    found = {
        "coverage_raw": None if raw is None else measures.coverage(torch.tensor(raw)),
        "bn_gap": gap,
        "boundary_distance": distances.median().item(),
        "steadiness": steady,
        **_of_answers(logits),
        **_of_features(features, chosen, classes),
        **_of_pixels(small.flatten(1), chosen, classes, compared, quiet),
        **_of_readouts(readouts),
    }
    values = {one.name: found[one.name] for one in SCORES}
    notes = (
        [f"distance to the boundary, steadiness: of {asked:,} of the images"]
        if asked < len(images)
        else []
    )
    if compared < len(images):
        notes.append(
            f"rank of pixels, neighbours, readout: of {compared:,} of the images; so many "
            "compared with all for duplicates"
        )
    return Scorecard(
        images=len(images),
        classes=classes,
        counts=counts,
        raw_counts=raw,
        margins=torch.histc(margins(logits), BINS, 0, 1).long().tolist(),
        readouts=readouts,
        values=values,
        overall=overall(values, features.shape[1]),
        notes=notes,
        decisions=torch.empty_like(order).index_copy_(0, order, chosen.cpu()),
    )


def margins(logits: Tensor) -> Tensor:  # (N, K) -> (N,)
    """p₁ − p₂."""
    first, second = logits.double().softmax(1).topk(2, 1).values.T
    return first - second


def _of_answers(logits: Tensor) -> dict[str, float]:  # (N, K)
    classes, apart = logits.shape[1], margins(logits)
    first, second = logits.topk(2, 1).indices.T
    soft_balance, mutual_information = measures.soft_coverage(logits.double().softmax(1))
    pairs_hit, pairs_effective = measures.pair_coverage(first, second, classes)
    return {
        "coverage": measures.coverage(torch.bincount(first, minlength=classes)),
        "soft_balance": soft_balance,
        "mutual_information": mutual_information,
        "pairs_hit": pairs_hit,
        "pairs_effective": pairs_effective,
        "margin": apart.mean().item(),
        "unsure": (apart < 0.5).double().mean().item(),
    }


def _of_features(
    features: Tensor, chosen: Tensor, classes: int
) -> dict[str, float]:  # (N, D), (N,)
    return {
        "rank": measures.effective_rank(features),
        "class_rank": measures.within_classes(measures.effective_rank, features, chosen, classes),
        "vendi": measures.vendi(features),
        "class_vendi": measures.within_classes(measures.vendi, features, chosen, classes),
    }


def _of_pixels(
    flat: Tensor, chosen: Tensor, classes: int, compared: int, quiet: bool
) -> dict[str, float]:  # (N, D), (N,)
    return {
        "pixel_rank": measures.effective_rank(flat[:compared]),
        "layout": measures.shared_layout(flat),
        "duplicates": measures.duplicate_rate(flat, compared, quiet=quiet),
        "neighbour": measures.neighbour_agreement(flat[:compared], chosen[:compared], classes),
    }


def _of_readouts(readouts: dict[int, float]) -> dict[str, float]:
    *_, half, whole = readouts.values()
    return {"readout": whole, "readout_gain": whole - half}


def check_options(options: ScoreOptions) -> None:
    """Refuse what can't work."""
    if options.gradients < 1 or options.compared < FEWEST or options.batch < 1:
        raise EchosetError(
            f"scores.gradients and batch must be at least 1 and scores.compared {FEWEST}, got "
            f"{options}"
        )


def check_images(images: Tensor, teacher: Classifier, name: str = "the set") -> None:
    """Refuse what can't be scored."""
    spec, shape = teacher.spec, tuple(images.shape)
    if images.dtype is not torch.uint8 or shape[1:] != (spec.channels, spec.size, spec.size):
        raise EchosetError(
            f"{name} has {images.dtype} images {shape}; the teacher takes uint8 (N, "
            f"{spec.channels}, {spec.size}, {spec.size}): "
            "read them with load_images(path, channels=…, size=…)"
        )
    if len(images) < FEWEST:
        raise EchosetError(
            f"{name} has {len(images)} images, too few to score; give {FEWEST} at least"
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


def ask(
    frozen: Frozen,
    images: Tensor,  # (N, C, H, W) uint8
    batch: int,
    device: torch.device,
    quiet: bool,
) -> tuple[Tensor, Tensor, float | None]:  # (N, K), (N, D)
    """Logits, penultimate features, and the distance of the whole set's BatchNorm moments from the
    running statistics.
    """
    classifier = frozen.classifier
    stages, matched = find_stages(classifier, maps=False), _has_moments(frozen)
    logits, features = [], []
    sums = torch.zeros(2, 0)
    with (
        torch.no_grad(),
        Taps(classifier, stages) as taps,
        StepProgress("asking the teacher", len(images), quiet) as progress,
    ):
        for part in images.split(batch):
            pixels = to_input(part.to(device))
            if matched:
                answer, mean, variance = frozen.with_moments(pixels)
                mean = mean.double()
                moments = torch.stack([mean, variance.double() + mean.square()]) * (
                    len(part) / len(images)
                )
                sums = moments if not logits else sums + moments
            else:
                answer = frozen(pixels)
            logits.append(answer)
            features.append(taps.embedding.flatten(1))
            progress.update(min(len(logits) * batch, len(images)))
    gap = bn_gap(frozen, sums[0], sums[1] - sums[0].square()) if matched else None
    if not torch.isfinite(torch.cat(logits)).all():
        raise EchosetError(
            "the teacher's answers to these images are not finite; check its weights with echoset "
            "inspect"
        )
    return torch.cat(logits), torch.cat(features), gap


def _has_moments(frozen: Frozen) -> bool:
    """Whether every BatchNorm layer runs once in a pass, so that its moments can be had."""
    spec = frozen.classifier.spec
    try:
        with torch.no_grad():
            device = frozen.classifier.mean.device
            frozen.with_moments(
                torch.full((2, spec.channels, spec.size, spec.size), 0.5, device=device)
            )
    except (EchosetError, ValueError):  # a layer that runs twice or never; no layer at all
        return False
    return True


def bn_gap(frozen: Frozen, mean: Tensor, variance: Tensor) -> float:  # (ΣC,), (ΣC,)
    """√ of the mean over all channels of ((μ − μ̂)/σ̂)² and ((σ² − σ̂²)/σ̂²)²."""
    target = frozen.target(relative=True)
    unit = target.unit.double()
    apart = torch.cat([(mean - target.mean) / unit.sqrt(), (variance - target.variance) / unit])
    return apart.square().mean().sqrt().item()


def steadiness(
    frozen: Frozen,
    images: Tensor,  # (N, C, H, W) uint8
    chosen: Tensor,  # (N,) what the teacher decides as they are
    batch: int,
    device: torch.device,
    quiet: bool = True,
) -> float:
    """Share of images decided the same in one view of those the teacher was trained on, but for
    squares cut out.
    """
    spec = frozen.classifier.spec
    trained, kept = trained_views(spec), torch.zeros((), dtype=torch.int64, device=device)
    plan = ViewPlan(round(trained.shift * spec.size), trained.flip)
    pool = images.to(device)
    with torch.no_grad(), StepProgress("steadiness", len(pool), quiet) as progress:
        for done, places in enumerate(torch.arange(len(pool), device=device).split(batch), 1):
            seen = views(pool, places, torch.zeros_like(places), plan, 0)
            kept += (frozen(seen).topk(2, 1).indices[:, 0] == chosen[places]).sum()
            progress.update(min(done * batch, len(pool)))
    return kept.item() / len(pool)


def boundary_distances(
    frozen: Frozen,
    images: Tensor,  # (N, C, H, W) uint8
    batch: int,
    device: torch.device,
    quiet: bool = True,
) -> Tensor:  # (N,)
    """(z₁ − z₂)/‖∇(z₁ − z₂)‖ in pixel L2, at most the diagonal of the cube of all images."""
    distances, most = [], math.sqrt(images[0].numel())
    with StepProgress("distances to the boundary", len(images), quiet) as progress:
        for part in images.split(batch):
            pixels = to_input(part.to(device)).requires_grad_(True)
            first, second = frozen(pixels).topk(2, 1).values.T
            (slope,) = torch.autograd.grad((first - second).sum(), pixels)
            distances.append(
                ((first - second).detach() / slope.flatten(1).norm(dim=1))
                .nan_to_num(0.0, most)
                .clamp(0, most)
            )
            progress.update(min(len(distances) * batch, len(images)))
    return torch.cat(distances)
