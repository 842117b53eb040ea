"""A set as Hugging Face's `datasets` has it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from distill.sets.forms.content import Content, Picture, to_png
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from torch import Tensor

    from distill.sets.transfer_set import TransferSet

MOST_PICTURES = 1000
MOST_NUMBERS = 2**24
"""Of pictures, and of numbers in their logits, in one table: Arrow has a limit for each."""


def to_dataset(data: TransferSet, views: int = 0) -> Any:
    """A `datasets.Dataset` of image, label, logits and index; with `views`, a row for each of so
    many views of each image.

    A label map is a picture, too, whose values are classes, as training scripts for segmentation
    expect it; beside it are the `classes` that it has, with their names.
    """
    try:
        import datasets
    except ImportError as error:
        raise EchosetError(
            "to_dataset needs Hugging Face's datasets; install it: pip install datasets"
        ) from error
    content = Content(data, views)
    answers = content.answers.tensor[:, 0] if views else data.logits  # (N, K), or (N, K, h, w)
    features = _features(data, answers)
    pictures = enumerate(content.pictures())
    most = min(MOST_PICTURES, max(MOST_NUMBERS // max(answers[0].numel(), 1), 1))
    tables = []
    while some := list(islice(pictures, most)):
        rows = [_row(picture, number // max(views, 1)) for number, picture in some]
        columns = {name: [row[name] for row in rows] for name in features}
        tables.append(datasets.Dataset.from_dict(columns, features))
    return datasets.concatenate_datasets(tables)


def _features(data: TransferSet, answers: Tensor) -> Any:
    """What the columns hold; where no answers are kept, no logits."""
    import datasets

    names = list(data.class_names or map(str, range(data.classes)))
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=names),
        "logits": datasets.Sequence(datasets.Value("float32"), length=data.classes),
        "index": datasets.Value("int64"),
    }
    if data.labels.ndim > 1:
        features["label"] = datasets.Image()
        features["logits"] = datasets.Array3D(tuple(answers.shape[1:]), "float32")
        features["classes"] = datasets.Sequence(datasets.ClassLabel(names=names))
    if not answers.numel():
        del features["logits"]
    return datasets.Features(features)


def _row(picture: Picture, index: int) -> dict[str, Any]:
    """A picture's, of any of the columns."""
    row: dict[str, Any] = {
        "image": {"bytes": picture.png, "path": None},
        "logits": picture.logits.float().numpy(),
        "index": index,
    }
    if picture.label.ndim:
        row["label"] = {"bytes": to_png(picture.label[None]), "path": None}
        row["classes"] = picture.label.unique().tolist()
    else:
        row["label"] = int(picture.label)
    return row
