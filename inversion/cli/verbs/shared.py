"""What several verbs need: data and sets that fit a teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.data.images import Images, load_images
from distill.data.maps import maps_for
from distill.data.matching import match_classes
from distill.models.classifier import CONTRACT, OUTPUT
from distill.models.contract import differing
from distill.sets.transfer_set import TransferSet, is_set
from distill.study import plan, run_study
from distill.study.cell import MADE_WITH
from inversion.cli.show import tell
from inversion.options import TeacherOptions
from inversion.teacher import BUNDLED, MNIST_SLICE
from inversion.teacher_file import spell_out
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from distill.models import Classifier
    from distill.options import StudyOptions
    from inversion.cli.schema import CollectRun, ScoreRun, StudyRun, SynthesizeRun

STUDENT = "student.safetensors"


def teacher_for(given: TeacherOptions | None, places: Iterable[str]) -> TeacherOptions:
    """The teacher that is given; else the one that made the first transfer set at these places."""
    if given is not None:
        return given
    for place in places:
        if is_set(place):
            return TeacherOptions(place)
    return TeacherOptions()


def is_bundled(teacher: TeacherOptions) -> bool:
    """Whether the teacher is the one that the bundled test images are for."""
    named = spell_out(teacher, BUNDLED, trust=True).options
    return (named.model, named.weights) == ("mnist", None)


def require_data(path: str | None, teacher: TeacherOptions) -> None:
    """Refuse a teacher that the bundled test images are not for, where there are no others."""
    if path is None and not is_bundled(teacher):
        raise EchosetError(
            "the bundled test images are MNIST's, for teacher mnist alone; give this one's test "
            "data with --data"
        )


def load_test_data(
    path: str | None, model: Classifier, quiet: bool, option: str = "--teacher", void: int = 255
) -> Images:
    """What to judge on, as the network takes it, which was given by `option`."""
    if path is not None:
        spec = model.spec
        maps = maps_for(spec, void)
        data = load_images(path, "test", spec.channels, spec.size, quiet, maps=maps)
        return match_classes(data, spec, f"{option}.names")
    if (model.spec.channels, model.spec.size, model.spec.classes) != (1, 28, 10):
        raise EchosetError(
            f"the bundled test images are MNIST's, not for {model.spec.model}; give its test data "
            "with --data"
        )
    data = load_images(MNIST_SLICE)
    return dataclasses.replace(
        data, name="every fifth image of the MNIST test set (2,000 of 10,000)"
    )


def load_set(
    path: str, teacher: Classifier, quiet: bool, labelled: bool = True, void: int = 255
) -> TransferSet | Images:
    """A transfer set this teacher made, or any images, as it takes them."""
    if is_set(path):
        transfer_set = TransferSet.load(path)
        require_same_teacher(transfer_set, teacher, path)
        return transfer_set
    spec = teacher.spec
    maps = maps_for(spec, void)
    data = load_images(path, "train", spec.channels, spec.size, quiet, labelled, maps)
    return match_classes(data, spec, "--teacher.names")


def require_same_teacher(transfer_set: TransferSet, teacher: Classifier, folder: str) -> None:
    """Refuse a set that another teacher made, or that was made with other settings of it."""
    maker = transfer_set.manifest["teacher"]
    maker_hash = str(maker.get("weight_hash"))
    weight_hash = teacher.weight_hash()
    if maker_hash != weight_hash:
        raise EchosetError(
            f"{folder} was made by teacher '{maker.get('model')}' with weights "
            f"{maker_hash[:16]}…, "
            f"the teacher given has {weight_hash[:16]}…; give the same one with --teacher"
        )
    contract = transfer_set.manifest["input"]
    differ = differing(teacher.contract, contract, (*CONTRACT, *OUTPUT))
    if differ:
        raise EchosetError(
            f"{folder} was made with another {', '.join(differ)} of the teacher; give the same "
            f"--teacher.{differ[0]}"
        )


def when_finished(folder: str) -> int | None:
    """When a set was finished, so that one can tell whether a command has made it; None if it
    isn't.
    """
    manifest = Path(folder) / "manifest.json"
    return manifest.stat().st_mtime_ns if manifest.is_file() else None


def tell_if_kept(run: CollectRun | SynthesizeRun, before: int | None, more: str = "") -> None:
    """Say that the set was there `before` this command, if it was, and what may be done now."""
    if before is not None and before == when_finished(run.out):
        tell(
            run,
            f"{run.out} was finished already, and stays as it is. Teach a student with it: echoset "
            f"distill --set {run.out};{more} make another one: --out",
        )


def fill_grid(
    run: StudyRun | ScoreRun,
    teacher: Classifier,
    sets: dict[str, Any],
    data: Images,
    out: Path,
    options: StudyOptions,
) -> tuple[list[dict[str, Any]], int]:
    """Teach this process's part of the students; all that are finished, and how many there are to
    be.
    """
    spec = teacher.spec
    original = None
    if run.original:
        maps = maps_for(spec, run.void)
        original = load_images(
            run.original, "train", spec.channels, spec.size, run.quiet, maps=maps
        )
        original = match_classes(original, spec, "--teacher.names")
    cells = run_study(
        teacher, sets, data, out, run.student, options, run.distillation, original, runtime=run
    )
    return cells, len(plan(sets, options, original is not None))


def strip_cells(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells of a study without what only the study itself reads."""
    return [_strip(cell) for cell in cells]


def _strip(cell: dict[str, Any]) -> dict[str, Any]:
    hidden = ("key", MADE_WITH, "per_class")
    return {name: value for name, value in cell.items() if name not in hidden}
