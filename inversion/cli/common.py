"""What several verbs take. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from distill.ranges import require_least, require_most
from distill.runtime import Runtime
from distill.tracking import check_track
from inversion.presets import PresetName


@dataclass(frozen=True)
class Common(Runtime):
    """What every verb takes: the runtime's fields, and how to answer."""

    json: bool = False
    """Print one JSON document as the last line of standard output."""


@dataclass(frozen=True)
class LoadingRun(Common):
    """What every verb takes that loads a network."""

    trust: bool = False
    """Import and run the code that a student's file, or a teacher.yaml, names. (An import
    path that you give yourself needs none of this.)
    """


@dataclass(frozen=True)
class PresetRun(LoadingRun):
    """What every verb takes that has presets."""

    preset: PresetName | None = None
    """Options that go together; what you give besides wins. digits: grey figures, as the defaults
    are; photos: photographs; large: those of 96 pixels and more; maps: segmentation; dfad: the
    same by DFAD's recipe; fast: a first look; none: plain defaults. By default it follows from the
    teacher, by its task, its file's notes on its images, their channels and size, and beside
    --config it is none.
    """


@dataclass(frozen=True)
class OwningRun(Common):
    """Of verbs that fill a folder."""

    overwrite: bool = False
    """Write over files in OUT that this verb has not made, or, as a student, with other options.
    Without it they are refused.
    """


@dataclass(frozen=True)
class MapsRun(Common):
    """Of verbs that read label maps."""

    void: int = 255
    """For segmentation: the value in a label map where nothing is known, which counts nowhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "", 0, "void")
        require_most(self, "", 65_535, "void")


@dataclass(frozen=True)
class TrackedRun(Common):
    """Of verbs that can leave their figures elsewhere, too."""

    track: str | None = None
    """Write the figures while they are made, beside the log: csv or tensorboard, each in OUT or,
    with :PATH behind it, there. TensorBoard needs the extra `tensorboard`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_track(self.track)
