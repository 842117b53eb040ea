"""A set as Hugging Face's `datasets` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill.sets.forms.content import Content
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from distill.sets.transfer_set import TransferSet


def to_dataset(data: TransferSet, views: int = 0) -> Any:
    """A `datasets.Dataset` of image, label, logits and index; with `views`, a row for each of so
    many views of each image.
    """
    try:
        import datasets
    except ImportError as error:
        raise EchosetError(
            "to_dataset needs Hugging Face's datasets; install it: pip install datasets"
        ) from error
    if data.labels.ndim > 1:
        raise EchosetError(
            "to_dataset takes sets of one label an image; export this one with --form folder, "
            "whose pictures and label maps datasets.load_dataset reads"
        )
    content = Content(data, views)
    names = list(data.class_names or map(str, range(data.classes)))
    rows: dict[str, list[Any]] = {"image": [], "label": [], "logits": [], "index": []}
    for number, picture in enumerate(content.pictures()):
        rows["image"].append({"bytes": picture.png, "path": None})
        rows["label"].append(int(picture.label))
        rows["logits"].append(picture.logits.float().numpy())
        rows["index"].append(number // max(views, 1))
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=names),
        "logits": datasets.Sequence(datasets.Value("float32"), length=data.classes),
        "index": datasets.Value("int64"),
    }
    return datasets.Dataset.from_dict(rows, datasets.Features(features))
