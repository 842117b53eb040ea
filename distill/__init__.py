"""Learn from a transfer set, whatever made it.

    from distill import TransferSet, distill, build_student, evaluate, load_images

Names are imported when they are first used, so that importing the package stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.data import Images, load_images
    from distill.evaluation import Evaluation, evaluate
    from distill.models import Classifier, ModelSpec, build_classifier, load_classifier, save_classifier
    from distill.options import DistillOptions, StudentOptions, ViewOptions
    from distill.train import DistillResult, build_student, distill
    from distill.transfer_set import TransferSet

_HOMES = {
    "distill.data": ("Images", "load_images"),
    "distill.evaluation": ("Evaluation", "evaluate"),
    "distill.models": ("Classifier", "ModelSpec", "build_classifier", "load_classifier", "save_classifier"),
    "distill.options": ("DistillOptions", "StudentOptions", "ViewOptions"),
    "distill.train": ("DistillResult", "build_student", "distill"),
    "distill.transfer_set": ("TransferSet",),
}
__all__ = [
    "Classifier",
    "DistillOptions",
    "DistillResult",
    "Evaluation",
    "Images",
    "ModelSpec",
    "StudentOptions",
    "TransferSet",
    "ViewOptions",
    "build_classifier",
    "build_student",
    "distill",
    "evaluate",
    "load_classifier",
    "load_images",
    "save_classifier",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'distill' has no attribute '{name}'")
