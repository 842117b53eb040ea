"""A task of several decisions an image, given in one class, goes the whole way: driver, recipes,
buffer, set, distillation and evaluation know no task by its name.
"""

import pytest
import torch
from roads import Dense as DenseNet
from torch import nn

from distill import TransferSet, distill, evaluate, export
from distill.data.augment import view_maps
from distill.data.images import Images
from distill.models import Classifier, ModelSpec, load_classifier, save_classifier
from distill.models.classifier import spec_of
from distill.models.contract import check_contract
from distill.options import DistillOptions, StudentOptions
from distill.runtime import Runtime
from distill.students import build_student
from distill.taps import find_stages
from distill.tasks import TASKS, find_task
from distill.tasks.places import count_decisions, decide, label_rows, per_image
from distill.tasks.words import Words
from inversion import SynthesisOptions, plan, synthesize
from inversion.options import AdversaryOptions, GeneratorOptions
from synthesis_kernels.errors import EchosetError

RUN = Runtime(device="cpu", precision="float32", quiet=True)
SIZE = 8
CLASSES = 3
SMALL = SynthesisOptions(
    images=12,
    batch=24,
    calls=4,
    generator=GeneratorOptions(inner_steps=2, width=8),
    adversary=AdversaryOptions(
        student=StudentOptions("test_tasks.DenseNet"), steps=2, batch=8, views_per_image=2
    ),
)


class PixelMaps:
    """One decision a pixel; an image counts for the class that most of it shows."""

    exact = False
    label_dtype = torch.uint8
    label_maps = True
    words = Words(unit="pixels", shares=True, folder={"images/*.png": "pictures"})

    def places(self, spec):
        return (spec.size, spec.size)

    def group(self, labels, classes):
        return label_rows(labels, classes).mean((2, 3)).argmax(1)

    def targets(self, wanted, spec, random):
        maps = wanted[:, None, None].repeat(1, spec.size, spec.size)
        maps[:, : spec.size // 4] = 0
        return maps

    def mixed_rows(self, rows, index, view, pool, options, seed):
        return view_maps(rows, index, view, options, seed)

    def shortfall(self, counts, quotas, images):
        share = sum(counts) / sum(quotas)
        lacking = {
            c: round(q - n / share) for c, (n, q) in enumerate(zip(counts, quotas, strict=True))
        }
        return {label: lack for label, lack in lacking.items() if lack > 0}

    def is_balanced(self, counts):
        return max(counts) <= 2 * min(counts)

    def summary(self, logits):
        return logits.log_softmax(1).exp().mean((2, 3)).log()

    def count(self, decisions, labels, classes):
        both = [((decisions == c) & (labels == c)).sum() for c in range(classes)]
        either = [((decisions == c) | (labels == c)).sum() for c in range(classes)]
        return torch.stack([torch.stack(both), torch.stack(either)])

    def measure(self, counts):
        both, either = counts
        return {"mean_iou": float((both / either).mean())}

    def check_folders(self, counts):
        pass

    def picture_folder(self, label, classes):
        return "images"

    def folder_files(self, label, name):
        return {f"labels/{name}.map": label.numpy().tobytes()}

    def label_files(self, label):
        return {"map": label.numpy().tobytes()}

    def paint(self, labels):
        return None


def brightness(images):  # (N, 1, H, W) uint8 -> (N, H, W) labels
    return (images[:, 0].long() * CLASSES // 256).to(torch.uint8)


def pictures(count, seed):
    """Random patches of grey, and what each pixel is."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 1, 2, 2), generator=random, dtype=torch.uint8)
    images = coarse.repeat_interleave(SIZE // 2, 2).repeat_interleave(SIZE // 2, 3)
    return Images(images, brightness(images), f"pictures {seed}")


@pytest.fixture(autouse=True)
def _task(monkeypatch):
    monkeypatch.setitem(TASKS, "maps", "test_tasks:PixelMaps")
    find_task.cache_clear()
    yield
    find_task.cache_clear()


@pytest.fixture
def teacher():
    """A dense network that learnt brightness in a hundred steps."""
    torch.manual_seed(0)
    spec = ModelSpec(
        "test_tasks.DenseNet", channels=1, size=SIZE, classes=CLASSES, task="maps", mean=(0.5,)
    )
    network = Classifier(DenseNet(1), spec)
    data = pictures(64, 1)
    optimiser = torch.optim.Adam(network.parameters(), 0.03)
    for _ in range(100):
        optimiser.zero_grad()
        logits = network(data.images.float() / 255)
        nn.functional.cross_entropy(logits, data.labels.long()).backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("recipe", ["ssd-kd", "adversarial"])
def test_a_task_of_many_decisions_goes_the_whole_way(tmp_path, teacher, recipe):
    options = SMALL
    if recipe == "adversarial":
        student = StudentOptions("test_tasks.DenseNet")
        adversary = AdversaryOptions(student=student, steps=2, batch=8)
        options = SynthesisOptions(recipe, images=12, batch=24, calls=4, adversary=adversary)
    made = synthesize(teacher, options, tmp_path / "set", RUN)
    loaded = TransferSet.load(tmp_path / "set", check_hashes=True)
    assert loaded.manifest["input"]["task"] == "maps"
    assert loaded.labels.dtype == torch.uint8 and loaded.labels.shape == (len(made), SIZE, SIZE)
    assert loaded.logits.shape == (len(made), CLASSES, SIZE, SIZE)
    assert sum(loaded.counts()) == len(made) * SIZE**2
    assert torch.bincount(loaded.groups, minlength=CLASSES).max() <= -(-12 // CLASSES)
    answers = teacher(loaded.images.float() / 255)
    assert torch.equal(decide(answers).to(torch.uint8), loaded.labels)

    export(loaded, tmp_path / "folder", "folder")
    pictures_written = sorted((tmp_path / "folder" / "images").iterdir())
    assert len(pictures_written) == len(made)
    maps = (tmp_path / "folder" / "labels" / f"{pictures_written[0].stem}.map").read_bytes()
    assert maps == loaded.labels[0].numpy().tobytes()

    student = build_student(StudentOptions("test_tasks.DenseNet"), loaded.manifest["input"], 3)
    lesson = DistillOptions(steps=60, batch=12, learning_rate=0.03)
    result = distill(student, loaded, teacher, lesson, tmp_path / "run", RUN)
    test = pictures(40, 2)
    figures = evaluate(result.student, test, teacher, runtime=RUN)
    assert 0 < figures.own["mean_iou"] <= figures.accuracy <= 1
    assert figures.agreement > 0.5
    save_classifier(result.student, tmp_path / "student.safetensors")


@pytest.mark.parametrize("loss", ["mse", "labels", "hints", "at", "sp", "dml"])
def test_methods_take_answers_of_many_places(teacher, loss):
    data = pictures(16, 3)
    student = build_student(StudentOptions("test_tasks.DenseNet"), teacher.contract, 3)
    options = DistillOptions(loss={loss: None}, steps=3, batch=8)
    assert distill(student, data, teacher, options, runtime=RUN).steps == 3


def test_what_needs_one_decision_an_image_says_so(teacher):
    data = pictures(16, 3)
    student = build_student(StudentOptions("test_tasks.DenseNet"), teacher.contract, 3)
    for loss in ("bss", "one"):
        options = DistillOptions(loss={loss: None}, steps=3, batch=8)
        message = f"{loss} is for one decision an image, and maps has 8 × 8"
        with pytest.raises(EchosetError, match=message):
            distill(student, data, teacher, options, runtime=RUN)
    with pytest.raises(EchosetError, match="leave attacks at 0"):
        evaluate(teacher, data, teacher, attacks=4, runtime=RUN)
    flat = Images(data.images, data.labels[:, 0, 0].long(), "flat")
    with pytest.raises(EchosetError, match=r"flat has labels of shape \(\) an image"):
        evaluate(teacher, flat, runtime=RUN)


def test_what_tells_classes_is_no_feature(teacher):
    stages = find_stages(teacher)
    assert "head" not in stages.layers and stages.channels[-1] == 8


def test_a_file_without_a_task_is_of_a_classifier():
    contract = {"channels": 1, "size": 8, "classes": 2, "mean": [0.0], "std": [1.0]}
    assert spec_of(contract).task == "classification"
    for task in ([], {}, 3):
        with pytest.raises(EchosetError, match="task must be one of"):
            check_contract({**contract, "task": task}, "a manifest")


def test_labels_of_the_data_teach_every_place(teacher):
    data = pictures(16, 3)
    student = build_student(StudentOptions("test_tasks.DenseNet"), teacher.contract, 3)
    options = DistillOptions(loss={"labels": 1.0}, labels="data", steps=3, batch=8)
    assert distill(student, data, None, options, runtime=RUN).steps == 3


def test_an_unknown_task_is_refused(tmp_path, teacher):
    with pytest.raises(
        EchosetError, match="no task 'mapz'; there are classification, segmentation, maps; did"
    ):
        find_task("mapz")
    save_classifier(
        Classifier(nn.Identity(), ModelSpec("x", task="mapz")), tmp_path / "x.safetensors"
    )
    with pytest.raises(
        EchosetError, match="task must be one of classification, segmentation, maps, got"
    ):
        load_classifier(tmp_path / "x.safetensors")


def test_places_hold_for_one_decision_and_for_many():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])  # (2, 3)
    maps = logits[:, :, None, None].repeat(1, 1, 2, 2)
    assert decide(logits).tolist() == [1, 0]
    assert per_image(decide(maps).float()).tolist() == [1.0, 0.0]
    assert count_decisions(decide(logits), 3).tolist() == [1, 1, 0]
    assert count_decisions(decide(maps).to(torch.uint8), 3).tolist() == [4, 4, 0]
    assert torch.equal(label_rows(decide(maps), 3)[:, :, 0, 0], label_rows(decide(logits), 3))
    assert label_rows(decide(maps), 3).shape == (2, 3, 2, 2)


def test_classification_balances_by_the_label_itself():
    task = find_task("classification")
    assert task.places(ModelSpec("x")) == ()
    assert task.shortfall([3, 1, 0], [2, 2, 1], 4) == {1: 1, 2: 1}
    assert task.is_balanced([2, 1, 2]) and not task.is_balanced([3, 1, 2])
    counts = [sum(job.quotas) for job in plan(SynthesisOptions(images=12), CLASSES)]
    assert sum(counts) == 12
