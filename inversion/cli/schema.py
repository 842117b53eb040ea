"""What each verb takes: one frozen dataclass a verb, read by the command line and by YAML alike. No
torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.options import DistillOptions, ExportForm, StudentOptions
from distill.ranges import require_least
from inversion.cli.common import Common as Common
from inversion.cli.common import LoadingRun, MapsRun, OwningRun, PresetRun, TrackedRun
from inversion.cli.lists import LISTS
from inversion.cli.schema_measuring import BenchRun as BenchRun
from inversion.cli.schema_measuring import EvaluateRun as EvaluateRun
from inversion.cli.schema_measuring import ScoreRun as ScoreRun
from inversion.cli.schema_measuring import StudyRun as StudyRun
from inversion.cli.schema_measuring import VerifyRun as VerifyRun
from inversion.options import (
    AnswerOptions,
    BesideOptions,
    CollectOptions,
    SynthesisOptions,
    TeacherOptions,
)
from inversion.options.collect import USUAL_WAYS, MakingWay
from synthesis_kernels.errors import EchosetError, suggest


@dataclass(frozen=True)
class DemoRun(PresetRun, TrackedRun, OwningRun, MapsRun):
    """`echoset demo`."""

    teacher: TeacherOptions = TeacherOptions()
    """The teacher: a name of `echoset list teachers`, a file or an import path; by default the
    bundled MNIST one.
    """
    out: str = "runs/demo"
    """Folder for the set, the student, the log and the report; a finished demo there is made
    anew.
    """
    data: str | None = None
    """Test data to judge on instead of the bundled 2,000 MNIST images: a folder such as MNIST's own
    or CIFAR's, or an .npz file. Without it another teacher than MNIST's is compared with its
    student on procedural pictures held out, and no accuracy is told.
    """
    student: StudentOptions = StudentOptions()
    """The student that learns from the finished set: a name of `echoset list students`."""
    start: Literal["fresh", "adversary"] = "fresh"
    """Where that student starts: from its own options, or from what the adversarial student, which
    must be kept, has learnt. The latter has drawn from every image that passed through the buffer,
    so the result says less about the finished set alone. (Of one that learnt by hints the student
    goes on, and not the layers that read the teacher's channels from its own.)
    """
    synthesis: SynthesisOptions = SynthesisOptions()
    """The synthesis stage; --images N is short for --synthesis.images N."""
    shortage: tuple[MakingWay, ...] = USUAL_WAYS
    """What is done about classes that are short after it, as for `synthesize`. Short: --short
    push.
    """
    beside: BesideOptions = BesideOptions()
    """What else the student is taught by: with --beside.images N, a set of N procedural pictures
    (or of other sources), made in OUT/beside.
    """
    answers: AnswerOptions = AnswerOptions()
    """Answers that the set carries, so that others can teach with it and have no teacher."""
    distillation: DistillOptions = DistillOptions()
    """The distillation stage; with 0 steps it is skipped, which only --start adversary allows."""


@dataclass(frozen=True)
class InspectRun(LoadingRun):
    """`echoset inspect`."""

    teacher: TeacherOptions = TeacherOptions()
    """The teacher: a name of `echoset list teachers`, a file or an import path."""
    estimate: bool = False
    """Also make a few steps, and say how long a set and a student take by the preset that suits
    the teacher.
    """


@dataclass(frozen=True)
class SynthesizeRun(PresetRun, TrackedRun):
    """`echoset synthesize`."""

    teacher: TeacherOptions = TeacherOptions()
    """The teacher: a name of `echoset list teachers`, a file or an import path."""
    out: str = "runs/set"
    """Folder of the set. A stopped run there is continued."""
    shortage: tuple[MakingWay, ...] = USUAL_WAYS
    """What is done about classes that are short in the end, of the images there are, one way after
    another: augment, mixup, push (see `collection.short`). Label maps have no push, and augment and
    mixup instead. Short: --short push; without a way nothing is made.
    """
    answers: AnswerOptions = AnswerOptions()
    """Answers that the set carries, so that `distill` needs no teacher."""
    synthesis: SynthesisOptions = SynthesisOptions()
    """Everything about the method; --images N is short for --synthesis.images N."""


@dataclass(frozen=True)
class CollectRun(LoadingRun):
    """`echoset collect`."""

    teacher: TeacherOptions | None = None
    """The teacher that decides, by default the one of the first transfer set among the sources, and
    without any mnist; it needs no BatchNorm.
    """
    sources: tuple[str, ...] = ("shaders",)
    """Where images come from, in this order: noise, gaussian, smooth, pink, leaves, shaders,
    fractals, strokes (with settings: leaves:smallest=0.1,cover=0.5), a transfer set, or any images
    as for --set of distill. Short: --source shaders DIR.
    """
    out: str = "runs/collected"
    """Folder of the set. A stopped run there is continued."""
    collection: CollectOptions = CollectOptions()
    """How they are chosen; --images N is short for --collection.images N."""
    answers: AnswerOptions = AnswerOptions()
    """Answers that the set carries, so that `distill` needs no teacher."""


@dataclass(frozen=True)
class DistillRun(PresetRun, TrackedRun, OwningRun, MapsRun):
    """`echoset distill`."""

    set: str = "runs/set"
    """What to learn from: a transfer set's folder, or any images: a folder of pictures or of one
    folder per class, MNIST's raw files, torchvision's CIFAR, an .npz file, torchvision:NAME:ROOT;
    for segmentation folders images and labels. The train split where there are splits.
    """
    beside: str | None = None
    """More to learn from, as for --set: say, a set of procedural pictures that `collect` made."""
    teacher: TeacherOptions | None = None
    """The teacher; by default the one that made the set, and for other images mnist. A set that
    carries its teacher's answers needs none.
    """
    corrupt: str = "none"
    """Damage the data's labels first: noise=RATE or imbalance=GAMMA; needs --distillation.labels
    data.
    """
    student: StudentOptions = StudentOptions()
    """The student: a name of `echoset list students`, or an import path."""
    out: str = "runs/student"
    """Folder for student.safetensors and the log. A stopped run there is continued."""
    distillation: DistillOptions = DistillOptions()
    """Everything about the training."""


@dataclass(frozen=True)
class ReportRun(Common):
    """`echoset report [RUN [RUN]]`."""

    run: str = "runs/demo"
    """Folder of a demo, of a set, or of a student; short: echoset report runs/demo."""
    against: str | None = None
    """A second run: one page with the figures of both side by side, and the options in which they
    differ; short: echoset report runs/a runs/b.
    """
    out: str | None = None
    """The page to write; default: report.html in the run's folder, or comparison.html there."""


@dataclass(frozen=True)
class ExportRun(Common):
    """`echoset export SET [SET …]`."""

    sets: tuple[str, ...] = ("runs/set",)
    """Transfer sets of one teacher, merged in this order; short: echoset export runs/set runs/other
    --out DIR.
    """
    out: str = "runs/export"
    """The folder to write; if there is one already, it has to be empty."""
    form: ExportForm = "folder"
    """folder: PNGs, one folder per class, each of which needs images (torchvision's ImageFolder,
    timm, Hugging Face's imagefolder); npz: set.npz of images, labels, logits, mean and std;
    webdataset: tar archives of .png, .cls and .npy (the logits); set: a transfer set again. Each
    has set.npz and a script beside it that trains a student with numpy and torch alone.
    """
    views: int = 0
    """Write pictures of so many views of each image, each with the teacher's answer to it, for
    trainers that make no views; the set needs answers (--answers of the command that made it).
    0 = the images themselves.
    """
    license: str = "unknown"
    """The licence that the data set's card, README.md, names; as Hugging Face calls it, such as
    cc-by-4.0.
    """
    images: int = 0
    """Draw so many of the images, as many of each class and within a class by priority; a class
    with too few leaves its places to others, which is said. 0 = all of them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "", 0, "images", "views")


@dataclass(frozen=True)
class ExportStudentRun(LoadingRun):
    """`echoset export-student`."""

    student: TeacherOptions = TeacherOptions(model="runs/student/student.safetensors")
    """The network to write: a student's file, or any that can be a teacher; --student X is short
    for --student.model X.
    """
    out: str = "runs/student/student.onnx"
    """The file to write. Its ending says the form: .onnx (needs the extra `onnx`), or .pt2, which
    torch.export.load reads. Either takes any number of images in [0, 1], as the network normalises
    them itself, and is compared with the network before it is kept (.onnx where onnxruntime is
    installed).
    """


@dataclass(frozen=True)
class ListRun(Common):
    """`echoset list [KIND …]`."""

    kinds: tuple[str, ...] = ()
    """What to list: teachers, students, recipes, sources, methods or presets, or several of these.
    Without any, which lists there are.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            if kind not in LISTS:
                known = ", ".join(LISTS)
                raise EchosetError(f"no list '{kind}'; there are {known}{suggest(kind, LISTS)}")
