"""What each score of a set is, between which limits it lies and what is good: every table and page
is made from this one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

FEWEST_IMAGES = 10
"""Images a set must have for any of this to mean something."""
NEAR = 0.02
"""Root mean square difference, of pixels in [0, 1], up to which two images count as the same."""
MOST_VALUES = 1024
"""Pixels are compared at a size of at most so many values."""


@dataclass(frozen=True)
class Score:
    """What one figure is."""

    name: str
    title: str
    limits: tuple[float, float | None]
    """Between which it lies; None where the most depends on the teacher or the set, as the
    definition says.
    """
    better: Literal["higher", "lower", ""]
    """Which way is claimed to be better; empty for a description that claims nothing."""
    definition: str
    good: str
    digits: int = 3

    @property
    def heading(self) -> str:
        """The title, with an arrow to where it is claimed to be better."""
        return self.title + {"higher": " ↑", "lower": " ↓", "": ""}[self.better]

    @property
    def range(self) -> str:
        """Its limits as text."""
        least, most = self.limits
        end = "…" if most is None else f"{most:g}"
        return f"{least:g} to {end}"

    def text(self, value: float | None) -> str:
        """A value as tables show it."""
        return "–" if value is None else f"{value:.{self.digits}f}"


SCORES = (
    Score(
        "coverage",
        "class coverage η",
        (0, 1),
        "higher",
        "entropy of the histogram of the teacher's decisions, over log K",
        "1: all classes alike",
    ),
    Score(
        "coverage_raw",
        "… before filtering",
        (0, 1),
        "higher",
        "the same over all images that were drawn before any were chosen; none where that is not "
        "known",
        "near 1: the source reaches every class by itself, which filtering hides",
    ),
    Score(
        "soft_balance",
        "soft balance",
        (0, 1),
        "higher",
        "entropy of the mean of the teacher's softmax, over log K",
        "1: every class gets the same probability in all",
    ),
    Score(
        "mutual_information",
        "mutual information",
        (0, 1),
        "higher",
        "soft balance less the mean entropy of the softmax over log K: how much an image says "
        "about its class",
        "1: every image is surely of a class, and all classes are there",
    ),
    Score(
        "pairs_hit",
        "class pairs hit",
        (0, 1),
        "higher",
        "of the K(K−1) ordered pairs of first and second choice, the share that occurs; at most "
        "N/K(K−1)",
        "1: every boundary between two classes has images on both sides",
    ),
    Score(
        "pairs_effective",
        "class pairs, effective",
        (0, 1),
        "higher",
        "exp of the entropy of these pairs, over K(K−1)",
        "1: every such pair has as many images",
    ),
    Score(
        "margin",
        "mean margin",
        (0, 1),
        "",
        "mean of p₁ − p₂, the softmax of first and second choice",
        "no claim: high is surely of a class, low is near a boundary",
    ),
    Score(
        "unsure",
        "margins below ½",
        (0, 1),
        "",
        "share of images with p₁ − p₂ < ½",
        "no claim: boundaries are learnt there, classes elsewhere",
    ),
    Score(
        "boundary_distance",
        "distance to the boundary",
        (0, None),
        "",
        "median of (z₁ − z₂)/‖∇(z₁ − z₂)‖, to first order how far the second class is: pixel L2, "
        "images in [0, 1], at most √(CHW)",
        "no claim, as for margins",
    ),
    Score(
        "steadiness",
        "steadiness",
        (0, 1),
        "",
        "share of images on which the teacher decides the same when they are shifted over a black "
        "edge, and mirrored, as in its "
        "training (shifted by up to a sixteenth of the side where its file does not say)",
        "near 1, as on its training data: decisions hang on what can be seen; no claim for the "
        "order of sets",
    ),
    Score(
        "rank",
        "effective rank",
        (1, None),
        "higher",
        "exp of the entropy of the normalised eigenvalues of the penultimate features' "
        "covariance; at most their number",
        "high: images differ in many ways the teacher knows",
        2,
    ),
    Score(
        "class_rank",
        "… within a class",
        (0, None),
        "higher",
        "its mean over all classes, one without images counting 0",
        "high: a class is more than one picture",
        2,
    ),
    Score(
        "vendi",
        "Vendi score",
        (1, None),
        "higher",
        "exp of the entropy of the eigenvalues of K/N, K the cosines between penultimate "
        "features; at most their number, or N",
        "high: so many different images in effect",
        2,
    ),
    Score(
        "class_vendi",
        "… within a class",
        (0, None),
        "higher",
        "its mean over all classes, one without images counting 0",
        "high: a class is more than one picture",
        2,
    ),
    Score(
        "pixel_rank",
        "effective rank of pixels",
        (1, None),
        "",
        f"the effective rank of pixels; pictures of more than {MOST_VALUES:,} values are averaged "
        "down first, here and below",
        "no claim: noise has most",
        1,
    ),
    Score(
        "layout",
        "shared layout",
        (0, 1),
        "",
        "contrast (deviation over pixels) of the mean of all images, over the root mean square "
        "contrast of one",
        "near 0: no two images need be alike; 1: all are the same picture. No claim: digits share "
        "the middle, and collapsed sets "
        "a corner",
    ),
    Score(
        "duplicates",
        "duplicates",
        (0, 1),
        "lower",
        f"share of images within {NEAR:g} root mean square pixel difference (five of 255 grey "
        "levels) of another one",
        "0: no image is there twice",
    ),
    Score(
        "bn_gap",
        "BatchNorm gap",
        (0, None),
        "lower",
        "the whole set's mean and variance less the running ones, in the channel's standard "
        "deviations and variances: root mean "
        "square over all channels; none for a teacher without BatchNorm",
        "0: the training data's own statistics; no gate: sets far from 0 can teach best",
        2,
    ),
    Score(
        "neighbour",
        "neighbours agree",
        (0, 1),
        "higher",
        "a fifth of the set held out, each image decided as its nearest in pixels among the rest, "
        "near copies left out: share "
        "decided as the teacher decides, mean over classes, one of which nothing is held out "
        "counting 0",
        "high: decisions show in the pixels; 1/K is chance",
    ),
    Score(
        "readout",
        "readout agrees",
        (0, 1),
        "",
        "the same fifth decided by ridge regression on fixed random filters (64 of 5 × 5, ReLU, "
        "averaged on a 4 × 4 grid) "
        "that learnt the teacher's decisions on the rest: share decided as the teacher decides, "
        "mean over classes as above",
        "no claim: high is easy to learn, which pushed images and copies are too; 1/K is chance",
    ),
    Score(
        "readout_gain",
        "… by the last doubling",
        (-1, 1),
        "",
        "its rise from half of the rest to all of it",
        "near 0 beside a high readout: the set is large enough; well above 0: more images would "
        "help",
    ),
)

OVERALL = (
    "overall: the geometric mean of class coverage before filtering (does the source reach every "
    "class by itself? After filtering "
    "where that is not known) and Vendi score over the number of features (does it differ in many "
    "ways?). In [0, 1], for order "
    "alone, among sets of one teacher and about one size: it sees neither size nor copies"
)


def definitions() -> list[dict[str, Any]]:
    """The table of scores, for JSON."""
    return [asdict(score) for score in SCORES]
