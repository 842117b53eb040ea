"""Options of collecting a set from sources. No torch here: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.brief import Brief
from distill.options import ViewOptions
from distill.ranges import (
    require_least,
    require_positive,
    require_shards,
    require_within,
)
from synthesis_kernels.errors import EchosetError

MakingWay = Literal["augment", "mixup", "push"]
"""Ways to make images of others for classes that are short."""
USUAL_WAYS: tuple[MakingWay, ...] = ("push",)
"""Those that are taken where nothing is said."""


@dataclass(frozen=True, repr=False)
class BoundaryOptions(Brief):
    """The walk of an image over the teacher's decision boundaries.

    Lengths are root mean squares over all values of an image, in levels of 0 to 255, and so mean
    the same at any size. The defaults suit the bundled teacher; boundaries of photographs' classes
    are nearer.
    """

    steps: int = 30
    """Most steps towards a boundary; a walk that has not crossed it by then is given up."""
    first_step: float = 8.0
    """Length of the first step."""
    growth: float = 1.2
    """Factor by which a step that helped makes the next one longer; a step that did not is undone,
    and the next is half as long. 1 = no growth.
    """
    close: float = 1.5
    """Largest distance between the two images of a pair, one on each side of a boundary. At 1 there
    are pairs for sure; below 1, only where pixels of different fractions round one after
    another.
    """
    deeper: float = 4.0
    """Length of the last step, from each of the pair into its own class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "boundary", 1, "steps", "growth")
        require_positive(self, "boundary", "first_step", "close", "deeper")


@dataclass(frozen=True, repr=False)
class CollectOptions(Brief):
    """A set chosen from sources by a teacher's decisions, without a generator."""

    images: int = 2000
    """Images in the finished set."""
    shard_images: int = 5000
    """Most images in one file of the set."""
    balanced: bool = True
    """As many images of each class as of any other, by the teacher's decision; false takes the
    stream's first images, whatever their class: the unbalanced twin of the same stream.
    """
    only: tuple[int, ...] = ()
    """Take from the sources only what the teacher decides as one of these classes; empty = all. In
    a balanced set the others are then short, and made as `short` says.
    """
    confidence: tuple[float, float] = (0.0, 1.0)
    """Take only images whose class the teacher gives a probability between these two."""
    margin: tuple[float, float] = (0.0, 1.0)
    """… and whose two likeliest classes differ by this much in probability."""
    expose: float | None = None
    """Part of the images shown as figures on black: their darker part and often all outside a frame
    made black. By default none, half or all of a source, whichever spreads its first 2,048 images
    most evenly over the teacher's classes (of images of over 32 pixels a side fewer, 256 at least);
    never of a transfer set, nor of fewer than 512 images.
    """
    draws: float = 20.0
    """Images drawn from each source for each image of the set, before the classes still short are
    dealt with as `short` says.
    """
    short: tuple[Literal["draw", MakingWay], ...] = USUAL_WAYS
    """What is done about classes that are short, one way after another. draw: ten times as many
    again; augment: views of their images (a view may cross into another short class); mixup: blends
    of their images with others; push: images pushed over the teacher's boundary into them. What is
    still missing then is left out, and said.
    """
    boundary: BoundaryOptions = BoundaryOptions()
    """How images are pushed."""
    views: ViewOptions = ViewOptions()
    """How images are augmented."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "collection", 1, "images", "shard_images")
        require_shards(self.images, self.shard_images, "collection")
        require_positive(self, "collection", "draws")
        if self.expose is not None:
            require_within(self, "collection", "[0, 1]", "expose")
        for name in ("confidence", "margin"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 1:
                raise EchosetError(
                    f"collection.{name} must be two numbers in [0, 1], the lower first, got {low} "
                    f"and {high}"
                )
        if len(set(self.short)) < len(self.short):
            ways = ", ".join(self.short)
            raise EchosetError(f"collection.short names a way twice: {ways}")
        if not self.balanced and self.short not in ((), CollectOptions.short):
            raise EchosetError(
                "collection.short fills classes that are short, and none is where "
                "collection.balanced is false"
            )


@dataclass(frozen=True, repr=False)
class BesideOptions(Brief):
    """A second set, of other sources, that teaches the student together with the generator's."""

    images: int = 0
    """Its size, as many of each class, collected as `echoset collect` does; 0 = none."""
    sources: tuple[str, ...] = ("shaders",)
    """Where from, as `collect` names them and walked in order: '["pictures/", "leaves"]'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "beside", 0, "images")
