"""How a teacher is trained, and the network and the images that this asks for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from distill.data.images import Images, Maps, content_hash, load_images
from distill.evaluation import check_fit
from distill.models import Classifier, ModelSpec, build_classifier
from distill.models.kinds import find_kind
from distill.names import name_classes, names_of_folders, read_names
from distill.optimisers import PEAKS
from distill.options import Optimiser, ViewOptions
from distill.ranges import require_least, require_within
from distill.runtime import Device, Precision
from distill.sizes import read_size, settle_size
from distill.tasks import USUAL, find_task
from distill.tasks.places import count_decisions
from synthesis_kernels.errors import EchosetError

STAGES = 4
"""Sizes below the full one that a recipe with `small` goes through."""
PLACES = ("data", "out", "record", "device", "names", "look")
"""What a recipe says of this machine, and not of the teacher."""


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is trained."""

    data: str
    """Folder or .npz file with a train and a test split; for segmentation each has folders images
    and labels.
    """
    out: str
    """The safetensors file to write."""
    record: str = ""
    """A result file, such as configs/results/teachers.json, that shall list this teacher too."""
    model: str = "convnet-32"
    """Zoo name."""
    task: str = USUAL
    """What the network decides: classification, or segmentation."""
    void: int = 255
    """For segmentation: the value in a label map where nothing is known, which counts nowhere."""
    names: str = ""
    """The classes' names, for the file's notes: as for --teacher.names, with commas between or a
    file of them. By default those of the folders of classes.
    """
    judge: str = "test"
    """The split that is judged after the last step: another one, such as val, while recipes are
    chosen.
    """
    look: bool = False
    """Also judge the training images, as they are, after every epoch."""
    mean: tuple[float, ...] = (0.1307,)
    """Of the normaliser."""
    std: tuple[float, ...] = (0.3081,)
    """Of the normaliser."""
    channels: int = 3
    """Of the images, 1 or 3, where `size` is given."""
    size: int | tuple[int, int] | str = 0
    """Resize all images to squares of this side, or to HEIGHTxWIDTH: for folders of pictures; 0 =
    they are of one size as they are.
    """
    epochs: int = 12
    """Passes over the training images."""
    small: float = 0.0
    """Part of the steps in which images are shown smaller: from half their side upwards in four
    equal stages.
    """
    batch: int = 256
    """Images in an update."""
    optimiser: Optimiser = "muon"
    """Muon, SGD or AdamW."""
    learning_rate: float | None = None
    """Peak of the one-cycle schedule; by default .05 for muon, .1 for sgd, .003 for adamw."""
    class_weights: Literal["none", "frequency"] = "none"
    """What each class counts in the loss: all the same, or 1/ln(1.02 + its share of the labels), as
    in ENet (Paszke et al. 2016), so that rare ones count more.
    """
    weight_decay: float = 5e-4
    """Of weights of two dimensions and more. Before BatchNorm it sets how far a step turns a
    weight: with too little of it the weights outgrow their steps.
    """
    views: ViewOptions = ViewOptions()
    """Augmentation. Label maps go through the same views; a label of a whole image stays as it is,
    so classification is without mixup and cutmix.
    """
    half: bool = False
    """Store matrices and convolutions in 16 bits; the accuracy is then that of the stored
    weights.
    """
    compile: bool = False
    """Compile the network, again for each size of the images: for runs of an hour and more, and for
    GPUs.
    """
    seed: int = 0
    """Fixes the result."""
    device: Device = "auto"
    """Where to train."""
    precision: Precision = "auto"
    """Of matrix products."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", read_size(self.size, least=0))
        require_least(self, "", 1, "epochs", "batch")
        require_within(self, "", "[0, 1]", "small")
        if self.size and self.channels not in (1, 3):
            raise EchosetError(f"channels must be 1 or 3 where size is given, got {self.channels}")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", PEAKS[self.optimiser])
        if not self.maps and (self.views.mixup or self.views.cutmix):
            raise EchosetError(
                "views.mixup and views.cutmix blend images, and labels stay as they are: leave "
                "both at 0"
            )

    @property
    def maps(self) -> bool:
        """Whether the labels are label maps."""
        return find_task(self.task).label_maps

    def settings(self) -> dict[str, Any]:
        """What fixes the teacher, beside the images."""
        left_out = {*PLACES}
        if not self.size:
            left_out |= {"size", "channels"}
        if not self.maps:
            left_out |= {"void"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def side_at(progress: float, side: int, small: float) -> int:
    """The side of the images shown when this part of the steps, in [0, 1), is done."""
    if not small:
        return side
    stage = int(progress / small * STAGES)
    if stage >= STAGES:
        return side
    return round(side * (1 + stage / STAGES) / 2)


def prepare(recipe: TeacherRecipe) -> tuple[Classifier, Images, Images]:
    """The network before its first step, and training and test images; what does not fit is refused
    now and not at the end.
    """
    _check_task(recipe)
    names = read_names(recipe.names) if recipe.names else ()
    data = _load(recipe, "train", len(names) or None)
    if recipe.maps and not names:
        _check_gaps(labels_of(data))
    classes = len(names) or int(labels_of(data).max()) + 1
    test = _load(recipe, recipe.judge, classes)
    check_images(recipe, data, test)
    spec = ModelSpec(
        recipe.model,
        channels=data.images.shape[1],
        size=settle_size(tuple(data.images.shape[2:])),
        classes=classes,
        task=recipe.task,
        mean=recipe.mean,
        std=recipe.std,
    )
    if names:
        spec = name_classes(spec, names)
    elif data.folders and len(data.folders) == spec.classes:
        spec = name_classes(spec, names_of_folders(data.folders))
    network = build_classifier(spec, recipe.seed)
    for split in (data, test):
        check_fit(network, split)
    network.check_forward()
    return network, data, test


def _check_task(recipe: TeacherRecipe) -> None:
    """Refuse a task that is not the one which the network's name tells."""
    kind = find_kind(recipe.model)
    task = kind.contract(recipe.model, {}, None).get("task") if kind else None
    if task not in (None, recipe.task):
        raise EchosetError(f"{recipe.model} is a network for {task}: say --task {task}")


def _check_gaps(labels: Tensor) -> None:  # (N, H, W)
    """Refuse label maps that leave classes out, where only their values tell how many there are."""
    seen = labels[labels >= 0].unique().tolist()
    highest = seen[-1]
    if len(seen) <= highest:
        raise EchosetError(
            f"the label maps have {len(seen)} of the values 0 to {highest}: if {highest} marks "
            f"places where nothing is known, say --void {highest}; else name all {highest + 1} "
            "classes with --names"
        )


def _load(recipe: TeacherRecipe, split: str, classes: int | None) -> Images:
    """The images of a split, with their labels."""
    channels = recipe.channels if recipe.size else None
    size = read_size(recipe.size) if recipe.size else None
    maps = Maps(recipe.void, classes) if recipe.maps else None
    return load_images(recipe.data, split, channels, size, quiet=False, maps=maps)


def weigh_classes(
    recipe: TeacherRecipe, labels: Tensor, classes: int
) -> Tensor | None:  # (N, *places) -> (K,)
    """What each class counts in the loss; None where all count the same."""
    if recipe.class_weights == "none":
        return None
    counts = count_decisions(labels, classes).double()
    return 1 / (1.02 + counts / counts.sum()).log().float()


def labels_of(data: Images) -> Tensor:  # (N, *places)
    """The true labels, which teach."""
    if data.labels is None:
        raise EchosetError(f"{data.name} has no labels to learn from")
    return data.labels


def check_images(recipe: TeacherRecipe, data: Images, test: Images) -> None:
    """Refuse images that can't teach, and those that can't judge."""
    if content_hash(data.images, None) == content_hash(test.images, None):
        raise EchosetError(
            f"{recipe.data} has no test images of its own, so no accuracy could be told; split it "
            "into train and test"
        )
    if recipe.batch > len(data):
        raise EchosetError(
            f"batch must be at most {len(data)}, the number of images, got {recipe.batch}"
        )
    labels_of(data)
