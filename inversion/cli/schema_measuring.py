"""What each verb takes that measures: networks, sets, students or speed. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.options import DistillOptions, StudentOptions, StudyOptions
from distill.ranges import require_least
from inversion.cli.common import LoadingRun, MapsRun, OwningRun
from inversion.options import ScoreOptions, TeacherOptions


@dataclass(frozen=True)
class EvaluateRun(LoadingRun, MapsRun):
    """`echoset evaluate`."""

    model: TeacherOptions = TeacherOptions()
    """The network to judge, a student's file or any that can be a teacher; --model X is short for
    --model.model X.
    """
    against: TeacherOptions | None = None
    """A second network, whose decisions the first is compared with; --against X is short for
    --against.model X.
    """
    data: str | None = None
    """A folder (MNIST's raw files, torchvision's CIFAR, one folder per class; for segmentation
    folders images and labels) or an .npz file; default: the bundled MNIST slice, for its network
    alone.
    """
    page: str | None = None
    """Also write an HTML page: accuracy by class, what is taken for what, and mistakes."""
    attacks: int = 0
    """With --against: how many images to attack, for boundary similarity and adversarial transfer;
    100 say much. Each is pushed to every other class in up to 20 steps, so many classes take long.
    0 = measure neither.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "", 0, "attacks")


@dataclass(frozen=True)
class VerifyRun(LoadingRun):
    """`echoset verify`."""

    set: str = "runs/set"
    """Folder of a transfer set; short: echoset verify runs/set."""
    teacher: TeacherOptions | None = None
    """Also ask this teacher, and compare its answers with the stored ones."""


@dataclass(frozen=True)
class BenchRun(LoadingRun):
    """`echoset bench`."""

    teacher: TeacherOptions = TeacherOptions(model="wrn-40-2")
    """The teacher; its weights may be untrained, only time is measured."""
    student: StudentOptions = StudentOptions(model="wrn-16-1")
    """The student."""
    batch: int = 128
    """Images in a step."""
    images: int = 5000
    """Images in the set the student learns from."""
    epochs: int = 20
    """Passes over the set that the bank of answers serves."""
    views: int = 4
    """Views of each image the teacher answers for."""
    repeats: int = 7
    """Times each side is measured, in turns."""
    save: str | None = None
    """Write the figures to this JSON file."""
    against: str | None = None
    """Compare with a file that --save wrote."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "", 1, "repeats", "views", "epochs")
        require_least(self, "", 2, "batch")
        require_least(self, "", self.batch, "images")


@dataclass(frozen=True)
class StudyRun(LoadingRun, OwningRun, MapsRun):
    """`echoset study`."""

    sets: dict[str, str] = field(default_factory=dict)
    """Names of sets and where they are, as for --set of distill: --sets '{"ssd-kd": "runs/set",
    "real": "DIR"}'.
    """
    original: str | None = None
    """The teacher's own training data; adds the rows "plain training" and "KD on the original
    data".
    """
    data: str | None = None
    """Test data; default: the bundled MNIST slice, for the MNIST teacher alone."""
    teacher: TeacherOptions | None = None
    """The teacher; by default the one that made the first transfer set, and without any mnist."""
    student: StudentOptions = StudentOptions()
    """The students."""
    out: str = "runs/study"
    """Folder of the cells, study.json and study.html. A stopped study there is continued."""
    study: StudyOptions = StudyOptions()
    """What is compared."""
    distillation: DistillOptions = DistillOptions()
    """How each student is trained; its loss is the method's."""


@dataclass(frozen=True)
class ScoreRun(LoadingRun, MapsRun):
    """`echoset score SET [SET …]`."""

    sets: dict[str, str] = field(default_factory=dict)
    """Names of sets and where they are; short: echoset score runs/set leaves=runs/leaves. Transfer
    sets of this teacher, or any images, as for --set of distill.
    """
    teacher: TeacherOptions | None = None
    """The teacher; by default the one that made the first transfer set, and without any mnist."""
    images: int = 0
    """Take so many images of each set, evenly spread over it; 0 = all. Sets of one size compare
    best.
    """
    scores: ScoreOptions = ScoreOptions()
    """How much of a set the dearer scores look at."""
    out: str = "runs/score.html"
    """The page to write. Cells and validation.json go to a folder beside it, runs/score."""
    validate: bool = False
    """Teach students on every set, and say how well each score predicts their accuracy on --data; a
    stopped run is continued.
    """
    seeds: tuple[int, ...] = (0, 1, 2)
    """Students of each set, for --validate."""
    data: str | None = None
    """Test data for --validate; default: the bundled MNIST slice, for the MNIST teacher alone."""
    original: str | None = None
    """The teacher's own training data: with --validate, the accuracy it would have taught is shown
    beside, and not counted.
    """
    student: StudentOptions = StudentOptions()
    """The students, for --validate."""
    distillation: DistillOptions = DistillOptions()
    """How they are trained, for --validate; their loss is hinton."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "", 0, "images")
