"""Learn from a transfer set, whatever made it, or from any images.

    from distill import TransferSet, distill, build_student, evaluate, load_images

Names are imported when they are first used, so that importing the package stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.batch import Batch
    from distill.data.augment import make_views
    from distill.data.corrupt import Corrupted, add_label_noise, draw_balanced, unbalance
    from distill.data.images import Images, Maps, from_dataset, load_images
    from distill.evaluation import Evaluation, evaluate
    from distill.methods import Method
    from distill.models import (
        Classifier,
        ModelSpec,
        as_classifier,
        build_classifier,
        load_classifier,
        save_classifier,
    )
    from distill.options import DistillOptions, StudentOptions, StudyOptions, ViewOptions
    from distill.result import DistillResult
    from distill.runtime import Runtime
    from distill.sets.answering import add_answers
    from distill.sets.exports import export
    from distill.sets.loading import Item
    from distill.sets.merging import merge, subsample
    from distill.sets.transfer_set import TransferSet
    from distill.students import build_student
    from distill.study import run_study
    from distill.team import Team, team_of
    from distill.tracking import CsvLog, TensorBoardLog
    from distill.train import distill, forget

_HOMES = {
    "distill.batch": ("Batch",),
    "distill.data.augment": ("make_views",),
    "distill.data.corrupt": ("Corrupted", "add_label_noise", "draw_balanced", "unbalance"),
    "distill.data.images": ("Images", "Maps", "from_dataset", "load_images"),
    "distill.evaluation": ("Evaluation", "evaluate"),
    "distill.sets.answering": ("add_answers",),
    "distill.sets.exports": ("export",),
    "distill.sets.loading": ("Item",),
    "distill.sets.merging": ("merge", "subsample"),
    "distill.methods": ("Method",),
    "distill.models": (
        "Classifier",
        "ModelSpec",
        "as_classifier",
        "build_classifier",
        "load_classifier",
        "save_classifier",
    ),
    "distill.options": ("DistillOptions", "StudentOptions", "StudyOptions", "ViewOptions"),
    "distill.result": ("DistillResult",),
    "distill.runtime": ("Runtime",),
    "distill.study": ("run_study",),
    "distill.students": ("build_student",),
    "distill.team": ("Team", "team_of"),
    "distill.tracking": ("CsvLog", "TensorBoardLog"),
    "distill.train": ("distill", "forget"),
    "distill.sets.transfer_set": ("TransferSet",),
}
__all__ = [
    "Batch",
    "Classifier",
    "Corrupted",
    "CsvLog",
    "DistillOptions",
    "DistillResult",
    "Evaluation",
    "Images",
    "Item",
    "Maps",
    "Method",
    "ModelSpec",
    "Runtime",
    "StudentOptions",
    "StudyOptions",
    "Team",
    "TensorBoardLog",
    "TransferSet",
    "ViewOptions",
    "add_answers",
    "add_label_noise",
    "as_classifier",
    "build_classifier",
    "build_student",
    "distill",
    "draw_balanced",
    "evaluate",
    "export",
    "forget",
    "from_dataset",
    "load_classifier",
    "load_images",
    "make_views",
    "merge",
    "run_study",
    "save_classifier",
    "subsample",
    "team_of",
    "unbalance",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'distill' has no attribute '{name}'")
