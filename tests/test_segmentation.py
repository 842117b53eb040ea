"""Networks that decide pixel by pixel, judged and taught: what is void counts nowhere."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from roads import CLASSES, SIZE, VOID, Dense, save_network, write_splits
from torch import nn

from distill import Images, Maps, distill, evaluate, load_classifier, load_images, tally
from distill.data.augment import OPERATIONS_STREAM, make_views
from distill.data.corrupt import corrupt
from distill.data.operations import MOVING, OPERATIONS
from distill.learner import Learner
from distill.memory import learn_in_parts
from distill.methods.labels import known_loss, label_loss
from distill.models import Classifier, ModelSpec
from distill.options import DistillOptions, ViewOptions
from distill.runtime import Runtime
from distill.tasks import find_task
from distill.tasks.places import label_rows, pool_rows
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.counter import uniforms
from synthesis_kernels.errors import EchosetError

TASK = find_task("segmentation")
RUN = Runtime(device="cpu", precision="float32", quiet=True)
STILL = {"rotate": 0, "scale": 0, "shift": 0}


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("roads"))


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(3)
    return load_classifier(save_network(tmp_path / "n.safetensors", Dense()), trust=True)


@pytest.fixture
def test_data(roads):
    return load_images(roads, maps=Maps(VOID, CLASSES))


def confusion(decided, labels):
    """In numpy, one place after another."""
    table = np.zeros((CLASSES, CLASSES), int)
    for truth, choice in zip(labels.flatten().tolist(), decided.flatten().tolist(), strict=True):
        if truth >= 0:
            table[truth, choice] += 1
    return table


def test_figures_are_those_of_a_confusion_matrix(network, test_data):
    found = evaluate(network, test_data, runtime=RUN)
    with torch.no_grad():
        logits = network.eval()(test_data.images.float() / 255)
    table = confusion(logits.argmax(1), test_data.labels)
    iou = np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))
    assert 0 < found.own["mean_iou"] < 1
    np.testing.assert_allclose(found.own["mean_iou"], iou.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.own["iou"], iou, rtol=1e-6)
    np.testing.assert_allclose(found.accuracy, np.diag(table).sum() / table.sum(), rtol=1e-6)
    np.testing.assert_allclose(found.per_class, np.diag(table) / table.sum(1), rtol=1e-6)
    flat = logits.movedim(1, -1)[test_data.labels >= 0].double()
    assert found.entropy == pytest.approx(
        torch.distributions.Categorical(logits=flat).entropy().mean().item(), rel=1e-5
    )
    own = np.exp(flat.log_softmax(1).numpy())
    right = own.argmax(1) == test_data.labels[test_data.labels >= 0].numpy()
    bins = np.minimum((own.max(1) * 10).astype(int), 9)
    gaps = [abs((own.max(1) - right)[bins == place].sum()) for place in range(10)]
    assert found.ece == pytest.approx(sum(gaps) / len(right), abs=1e-4)


def test_a_class_that_labels_lack_is_in_no_mean(network, test_data):
    labels = test_data.labels.clamp_max(1)
    found = evaluate(network, Images(test_data.images, labels, "two"), runtime=RUN)
    assert found.own["iou"][2] is None and found.per_class[2] is None
    assert found.own["mean_iou"] == pytest.approx(np.mean(found.own["iou"][:2]))


def test_answers_where_nothing_is_known_change_no_figure(network, test_data, monkeypatch):
    logits = torch.randn(8, CLASSES, *SIZE)
    other = torch.where((test_data.labels < 0)[:, None], torch.randn_like(logits), logits)
    assert not torch.equal(other.argmax(1), logits.argmax(1))

    def judged(answers):
        return evaluate(
            network, test_data, network, teacher_logits=answers, logits=answers, runtime=RUN
        )

    assert judged(other) == judged(logits) and judged(logits).agreement == 1
    mixed = evaluate(network, test_data, network, teacher_logits=other, logits=logits, runtime=RUN)
    assert mixed.agreement == 1
    monkeypatch.setattr(tally, "AT_ONCE", 1)
    assert judged(other) == judged(logits)


def test_labels_that_are_none_are_refused(network, test_data):
    void = torch.full_like(test_data.labels, -100)
    for labels, said in (
        (void, "in which no place is known"),
        (void.index_fill(0, torch.tensor([0]), -1), "labels from -1 to -1"),
        (void.index_fill(0, torch.tensor([0]), 3), "labels from 3 to 3"),
    ):
        data = Images(test_data.images, labels, "spoilt")
        with pytest.raises(EchosetError, match=said):
            evaluate(network, data, runtime=RUN)
        with pytest.raises(EchosetError, match=said):
            distill(network, data, None, DistillOptions({"labels": 1}, labels="data"), runtime=RUN)


def test_pictures_are_dropped_by_the_class_that_they_count_for(roads):
    data = load_images(roads, "train", maps=Maps(VOID, CLASSES))
    left = corrupt(data, CLASSES, "imbalance=1", 0, TASK)
    assert 0 < len(left.data) < len(data) and left.data.labels.shape[1:] == SIZE


@pytest.mark.parametrize(
    "options",
    [
        {"shift": 0.3},
        {"flip": True},
        {"cutout": 0.5},
        {"rotate": 30},
        {"scale": 0.4, "shift": 0.2, "flip": True},
        {"mixup": 0.5},
        {"cutmix": 0.7, "shift": 0.2},
        {"cutmix": 0.7, "rotate": 10},
    ],
)
@pytest.mark.parametrize("classes", [3, 11])
def test_label_maps_go_through_the_views_of_their_images(options, classes):
    """Pictures that show their own labels, a class a channel."""
    views = ViewOptions(**STILL | options)
    labels = torch.randint(-1, classes, (6, 12, 10), generator=torch.Generator().manual_seed(1))
    rows = pool_rows(labels, classes)
    assert torch.equal(rows.float() / 255, label_rows(labels, classes))
    index, view = torch.arange(12) % 6, torch.arange(12)
    moved = TASK.mixed_rows(rows, index, view, rows, views, 5)
    assert moved.dtype is torch.float32 and moved.shape == (12, classes, 12, 10)
    for start in range(0, classes, 3):
        shown = make_views(rows[:, start : start + 3], index, view, views, 5)
        torch.testing.assert_close(moved[:, start : start + 3], shown, rtol=0, atol=1e-6)
    assert moved.sum(1).max() <= 1 + 1e-5
    torch.testing.assert_close(
        TASK.mixed_rows(rows.float() / 255, index, view, rows, views, 5), moved
    )
    assert not torch.equal(moved, rows[index].float() / 255)


@pytest.mark.parametrize("form", ["reference", "triton"])
def test_maps_move_alike_in_every_form(form):
    if form == "triton":
        pytest.importorskip("triton")
    rows = pool_rows(torch.randint(-1, 11, (3, 9, 10)), 11)
    index, view = torch.arange(5) % 3, torch.arange(5)
    views = ViewOptions(**STILL | {"shift": 0.3}, flip=True, cutmix=0.5, mixup=0.5, cutout=0.3)
    expected = TASK.mixed_rows(rows, index, view, rows, views, 5)
    with kernel_form(form):
        moved = TASK.mixed_rows(rows, index, view, rows, views, 5)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_what_is_erased_has_no_label_and_what_is_sheared_is_moved():
    labels = torch.randint(0, 3, (4, 12, 16), generator=torch.Generator().manual_seed(1))
    rows = pool_rows(labels, 3)
    index, view = torch.arange(40) % 4, torch.arange(40)
    moved = TASK.mixed_rows(rows, index, view, rows, ViewOptions(**STILL, erase=1.0), 5)
    shown = make_views(rows, index, view, ViewOptions(**STILL, erase=1.0), 5)
    noisy = ((shown != 0) & (shown != 1)).any(1)
    assert noisy.any() and torch.equal(moved.sum(1) == 0, noisy)
    once = ViewOptions(**STILL, operations=1, strength=1.0)
    moved = TASK.mixed_rows(rows, index, view, rows, once, 5)
    shown = make_views(rows, index, view, once, 5)
    drawn = (uniforms(index, view, 5 + OPERATIONS_STREAM, 3)[0] * len(OPERATIONS)).long()
    sheared = torch.tensor([list(OPERATIONS)[place] in MOVING for place in drawn.tolist()])
    assert sheared.any() and not sheared.all()
    assert torch.equal(moved[sheared], shown[sheared])
    assert torch.equal(moved[~sheared], rows[index[~sheared]].float() / 255)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 5.0, 0.5])])
def test_the_loss_is_the_mean_over_known_places(weights):
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 5))
    labels[:, 1:3] = -100
    expected = F.cross_entropy(logits, labels, weights)
    (right,) = torch.autograd.grad(expected, logits)
    loss = known_loss(logits, label_rows(labels, 3), weights)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, right)
    assert (gradient[:, :, 1:3] == 0).all()


def test_a_batch_without_a_label_teaches_nothing_and_one_label_an_image_as_ever():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = known_loss(logits, torch.zeros(2, 3, 4, 5))
    assert loss == 0 and not torch.autograd.grad(loss, logits)[0].any()
    flat, rows = torch.randn(7, 4), torch.rand(7, 4).softmax(1)
    assert torch.equal(label_loss([flat], rows), F.cross_entropy(flat, rows))


def test_rows_of_too_many_maps_are_refused_before_memory_is_taken(monkeypatch):
    labels = torch.zeros(1, 1, 1, dtype=torch.long).expand(200_000, 500, 500)
    with pytest.raises(EchosetError, match=r"200,000 images, 500 × 500, and 11 classes"):
        pool_rows(labels, 11)


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0, 2])
def test_a_student_learns_label_maps(roads, network, test_data, patience):
    data = load_images(roads, "train", maps=Maps(VOID, CLASSES))
    options = DistillOptions(
        {"labels": 1},
        labels="data",
        steps=100,
        batch=12,
        held_out=0.25,
        patience=patience,
        views_per_image=0,
        views=ViewOptions(rotate=10, scale=0.2, flip=True, cutmix=0.5, cutout=0.3),
    )
    before = evaluate(network, test_data, runtime=RUN).own["mean_iou"]
    result = distill(network.requires_grad_(True), data, None, options, runtime=RUN)
    after = evaluate(result.student, test_data, runtime=RUN).own["mean_iou"]
    assert after > max(0.85, before)
    if patience:
        assert result.held_out_agreement > 0.85


class Fixed(nn.Module):
    """Decides for class 1 everywhere."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 1)
        nn.init.zeros_(self.layer.weight)
        self.layer.bias = nn.Parameter(torch.tensor([0.0, 2.0, 0.0]))

    def forward(self, x):
        return self.layer(x)


class Figures:
    """Keeps what a training tells."""

    def log(self, figures, step):
        self.told = figures


def voided(size=8):
    """Label maps with two rows of class 1, one of class 2, and five that are void."""
    labels = torch.full((4, size, size), -100)
    labels[:, :2] = 1
    labels[:, 2] = 2
    images = torch.zeros(4, 1, size, size, dtype=torch.uint8)
    return Images(images, labels, "voided")


@pytest.mark.parametrize("form", ["reference", "native"])
def test_what_is_void_counts_in_no_figure_of_a_training(form):
    spec = ModelSpec("test_segmentation.Fixed", channels=1, size=8, classes=3, task="segmentation")
    options = DistillOptions(
        {"labels": 1},
        labels="data",
        steps=1,
        batch=4,
        views_per_image=0,
        views=ViewOptions(**STILL),
    )
    log = Figures()
    with kernel_form(form):
        distill(Classifier(Fixed(), spec), voided(), None, options, runtime=RUN, log=log)
    assert log.told["distillation/agreement"] == pytest.approx(2 / 3)
    rows = torch.tensor([[0.0, 2.0, 0.0]]).repeat(3, 1)
    expected = F.cross_entropy(rows, torch.tensor([1, 1, 2])).item()
    assert log.told["distillation/loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("parts", [2, 3])
def test_maps_learnt_in_parts_count_by_what_is_known(parts):
    spec = ModelSpec("test_segmentation.Fixed", channels=1, size=8, classes=3, task="segmentation")
    options = DistillOptions({"labels": 1, "hinton": 0.5}, labels="data")
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (4, 8, 8), generator=random)
    labels[0, :, 1:] = -100
    labels[1] = -100
    images = torch.rand(4, 1, 8, 8, generator=random)
    answers = torch.randn(4, 3, 8, 8, generator=random)
    lesson = (images, answers, label_rows(labels, 3), torch.zeros(()), torch.empty(0))

    def gradients(learn):
        learner = Learner(Classifier(Fixed(), spec), None, options, answered=True)
        learn(learner)[0].backward()
        return [parameter.grad for parameter in learner.parameters()]

    whole = gradients(lambda learner: learner(*lesson))
    found = gradients(lambda learner: learn_in_parts(learner, lesson, parts))
    torch.testing.assert_close(found, whole)


def test_the_command_line_reads_judges_and_teaches(roads, network, run, refused, tmp_path):
    file = tmp_path / "n.safetensors"
    model = ["evaluate", f"--model={file}", "--trust", f"--data={roads}"]
    page = tmp_path / "page.html"
    done = run(*model, f"--void={VOID}", f"--page={page}", "--json")
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert "mean IoU" in rows[0] and "class 1 (kerb)" in done.stdout
    told = json.loads(done.stdout.splitlines()[-1])
    assert list(told)[2] == "own" and len(told["own"]["iou"]) == CLASSES
    assert "mean IoU" in page.read_text() and "class 2 (sky)" in page.read_text()
    assert "has the value 9" in refused(*model)
    assert "void must be at most 65,535" in refused(*model, "--void=65536", status=2)
    common = [
        f"--set={roads}",
        f"--teacher={file}",
        "--trust",
        "--student=roads.Dense",
        "--distillation.batch=8",
        "--distillation.steps=4",
        "--preset=none",
        "--loss=labels",
    ]
    run("distill", *common, f"--out={tmp_path / 'by-teacher'}")
    by_data = ["--distillation.labels=data", f"--out={tmp_path / 'by-data'}"]
    run("distill", *common, *by_data, f"--void={VOID}")
    assert "has the value 9" in refused("distill", *common, *by_data)
