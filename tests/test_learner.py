import math
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from weakref import WeakSet

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_learnt
from torch import nn

from distill import (
    Classifier,
    DistillOptions,
    ModelSpec,
    StudentOptions,
    build_classifier,
    build_student,
    load_images,
)
from distill.data.augment import make_views
from distill.data.images import Images
from distill.judge import Judge
from distill.learner import Learner
from distill.lesson_key import lesson_key
from distill.lessons import Lessons
from distill.losses import full_loss
from distill.methods import METHODS, find_method
from distill.methods.attention import attention_loss
from distill.methods.boundary import push_over
from distill.methods.ensemble import cut_after
from distill.methods.fitnet import fitnet_loss
from distill.methods.fsp import fsp_loss
from distill.methods.hints import hint_loss
from distill.methods.relational import angle_loss, distance_loss, relational_loss
from distill.methods.similarity import similarity_loss
from distill.optimisers import make_optimiser
from distill.options import ViewOptions
from distill.runtime import Runtime
from distill.taps import Taps, find_stages
from distill.train import _Training, distill
from distill.views import to_input
from inversion import MNIST_SLICE
from synthesis_kernels.errors import EchosetError

SHORT = DistillOptions(steps=4, batch=16, views_per_image=2)
PUBLISHED = {name: find_method(name).weight for name in METHODS}
SINGLE = [name for name in PUBLISHED if name != "labels"]


@pytest.fixture(scope="module")
def data():
    whole = load_images(MNIST_SLICE)
    return whole.chosen(torch.arange(120))


def student_like(teacher, model="convnet-4", seed=0):
    return build_classifier(replace(teacher.spec, model=model, notes={}), seed)


def run(teacher, data, options, model="convnet-4", **more):
    return distill(
        student_like(teacher, model),
        data,
        teacher,
        options,
        folder=more.pop("folder", None),
        runtime=Runtime(device="cpu", quiet=True, **more),
    )


def lesson(teacher, data, options, learner):
    """One batch's inputs, as the loop would give them."""
    torch.manual_seed(0)
    images = to_input(data.images[:16])
    answers = teacher(images).detach() if learner.takes_answers else torch.empty(0)
    return images, answers, torch.empty(0), torch.tensor(0.5), torch.rand(16)


@pytest.mark.parametrize("labels", ["teacher", "data"])
@pytest.mark.parametrize(
    "loss",
    [*({name: PUBLISHED[name]} for name in SINGLE), {"hinton": 1.0, "at": 1000.0, "rkd": 1.0}],
)
def test_every_method_changes_the_student_with_either_kind_of_label(teacher, data, loss, labels):
    before = student_like(teacher).weight_hash()
    result = run(teacher, data, replace(SHORT, loss=loss, labels=labels))
    assert result.student.weight_hash() != before and not result.student.training
    assert all(parameter.isfinite().all() for parameter in result.student.parameters())


@pytest.mark.parametrize(
    "loss",
    [
        {name: PUBLISHED[name]}
        for name in ("hinton", "labels", "bss", "dml", "one", "fitnet", "hints")
    ],
)
def test_same_seed_same_student(teacher, data, loss):
    one, two, other = (
        run(teacher, data, replace(SHORT, loss=loss), seed=seed).student.weight_hash()
        for seed in (1, 1, 2)
    )
    assert one == two != other


@pytest.mark.parametrize("model", ["lenet5", "wrn-10-1", "cifar-vgg11", "cifar-mobilenetv2"])
def test_features_of_other_families_are_compared(teacher, data, model):
    everything = {
        "fitnet": 100.0,
        "at": 1000.0,
        "fsp": 50.0,
        "sp": 3000.0,
        "rkd": 1.0,
        "hints": 20.0,
    }
    before = list(student_like(teacher, model).parameters())
    result = run(teacher, data, replace(SHORT, steps=2, loss=everything), model)
    assert_learnt(result.student, before)


@pytest.mark.parametrize(
    "name", ["hinton", "mse", "fitnet", "at", "fsp", "sp", "rkd", "rkd-d", "rkd-a", "hints"]
)
def test_a_copy_of_the_teacher_has_nothing_to_learn(teacher, data, name):
    copy = build_classifier(replace(teacher.spec, notes={}))
    copy.load_state_dict(teacher.state_dict())
    learner = Learner(copy.eval(), teacher, replace(SHORT, loss={name: 1.0, "labels": 0.0}))
    loss, logits, answers = learner.eval()(*lesson(teacher, data, SHORT, learner))
    assert loss.abs() < 1e-6 * max(1.0, PUBLISHED[name])
    torch.testing.assert_close(logits, answers, rtol=1e-4, atol=1e-3)


def test_terms_are_weighted_and_added(teacher, data):
    def loss_of(weights):
        options = replace(SHORT, loss=weights)
        torch.manual_seed(3)
        learner = Learner(student_like(teacher), teacher, options).eval()
        return learner(*lesson(teacher, data, options, learner))[0]

    together = loss_of({"hinton": 0.5, "at": 7.0, "rkd-d": 2.0})
    alone = [
        loss_of({name: weight, "labels": 0.0})
        for name, weight in (("hinton", 0.5), ("at", 7.0), ("rkd-d", 2.0))
    ]
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=1e-4)


def test_labels_are_the_teachers_first_choice_or_its_softmax(teacher, data):
    for temperature, expected in ((0.0, None), (2.0, 2.0)):
        options = replace(SHORT, loss={"labels": 1.0}, label_temperature=temperature)
        student = student_like(teacher).eval()
        learner = Learner(student, teacher, options).eval()
        images, answers, *rest = lesson(teacher, data, options, learner)
        loss = learner(images, answers, *rest)[0]
        log = student(images).log_softmax(1)
        if expected is None:
            torch.testing.assert_close(loss, -log.gather(1, answers.argmax(1, keepdim=True)).mean())
        else:
            torch.testing.assert_close(loss, -((answers / expected).softmax(1) * log).sum(1).mean())


def test_no_labels_are_added_beside_hinton_and_one_otherwise():
    assert full_loss({"hinton": 1.0, "at": None}) == {"hinton": 1.0, "at": 1000.0}
    assert full_loss({"at": 5.0}) == {"labels": 1.0, "at": 5.0}
    assert full_loss({"hinton": 0.0, "sp": 1.0}) == {"labels": 1.0, "sp": 1.0}
    assert full_loss({"labels": 0.0, "sp": 1.0}) == {"sp": 1.0}
    assert full_loss({"mse": None}) == {"labels": 0.025, "mse": 1.0}
    assert full_loss({"mse": 2.0, "at": 5.0}) == {"labels": 0.025, "mse": 2.0, "at": 5.0}
    assert full_loss({"mse": 1.0, "labels": 0.0}) == {"mse": 1.0}
    assert full_loss({"mse": 1.0, "dml": 1.0}) == {"labels": 1.0, "mse": 1.0, "dml": 1.0}
    assert full_loss({"hinton": 1.0, "dml": 1.0}) == {"labels": 1.0, "hinton": 1.0, "dml": 1.0}


def test_a_student_comes_to_the_teachers_logits_by_mse(teacher, data):
    """In few steps, on images that it learnt from."""
    options = DistillOptions(steps=150, batch=40, loss={"mse": None})
    images = to_input(data.images)
    before = student_like(teacher, "convnet-16").eval()
    after = run(teacher, data, options, "convnet-16").student
    with torch.no_grad():
        answers = teacher(images)
        far = (before(images) - answers).square().mean()
        near = (after(images) - answers).square().mean()
    assert near < far / 2


def test_what_is_trained_and_what_is_not(teacher, data):
    before = teacher.weight_hash()
    for loss, beside in (
        ({"fitnet": 1.0}, True),
        ({"dml": 1.0}, True),
        ({"one": 1.0}, True),
        ({"hinton": 1.0}, False),
    ):
        learner = Learner(student_like(teacher), teacher, replace(SHORT, loss=loss))
        inside = {id(p) for p in learner.parameters()}
        assert not inside & {id(p) for p in teacher.parameters()}
        assert {id(p) for p in learner.student.parameters()} <= inside
        assert (len(inside) > len(list(learner.student.parameters()))) == beside
    run(teacher, data, replace(SHORT, loss={"fitnet": 100.0, "bss": 1.0}))
    assert teacher.weight_hash() == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in teacher.modules()
    )


def test_peers_and_branches_are_as_many_as_asked_and_unlike(teacher, data):
    learner = Learner(student_like(teacher), teacher, replace(SHORT, loss={"dml": 1.0}, peers=4))
    assert (
        len(
            {
                learner.student.weight_hash(),
                *(peer.weight_hash() for peer in learner.parts["Peers"].networks),
            }
        )
        == 4
    )
    learner = Learner(
        student_like(teacher), teacher, replace(SHORT, loss={"one": 1.0}, branches=4)
    ).eval()
    images = to_input(data.images[:8])
    with Taps(learner.student, learner.parts["Tails"].stages) as trunk:
        student = learner.student(images)
    branches = [student, *(tail(trunk.maps[0]) for tail in learner.parts["Tails"].networks)]
    assert len(branches) == 4
    assert all(not torch.allclose(a, b) for i, a in enumerate(branches) for b in branches[:i])
    # What the learner reports are the first branch's answers, and that is the student whom saving
    # saves.
    torch.testing.assert_close(
        learner(images, teacher(images), torch.empty(0), torch.tensor(0.5), torch.empty(0))[1],
        student,
    )


@pytest.mark.parametrize(
    "model", ["convnet-4", "lenet5", "wrn-10-1", "cifar-resnet18", "cifar-mobilenetv2"]
)
def test_a_tail_computes_what_the_network_does_after_the_cut(teacher, data, model):
    network = student_like(teacher, model).eval()
    stages = find_stages(network)
    with Taps(network, stages) as taps:
        logits = network(to_input(data.images[:4]))
    # In training, as it is when it is cut for a method.
    tail = cut_after(network.train(), stages.layers[-2]).eval()
    torch.testing.assert_close(tail(taps.maps[-2]), logits)
    assert len(list(tail.parameters())) < len(list(network.parameters()))


@pytest.mark.parametrize(
    "model, size, layers, head",
    [
        ("convnet-16", 28, ("features.0.2", "features.2.2", "features.5.2"), "head"),
        ("wrn-16-1", 32, ("blocks.1", "blocks.3", "blocks.5"), "head"),
        ("wrn-40-2", 32, ("blocks.5", "blocks.11", "blocks.17"), "head"),
        ("cifar-resnet18", 32, ("layers.1", "layers.3", "layers.5", "layers.7"), "head"),
        ("resnet18", 64, ("relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1"), "fc"),
    ],
)
def test_stages_end_with_their_last_block(model, size, layers, head):
    stages = find_stages(build_classifier(ModelSpec(model, channels=3, size=size)))
    assert stages.layers == layers and stages.head == head
    assert list(stages.sides) == sorted(stages.sides, reverse=True)


def test_taps_give_what_the_layers_give_and_leave_nothing(teacher, data):
    images = to_input(data.images[:4])
    with Taps(teacher, find_stages(teacher)) as taps:
        logits = teacher(images)
    torch.testing.assert_close(teacher.network.head(taps.embedding), logits)
    torch.testing.assert_close(taps.maps[-1].mean((2, 3)), taps.embedding)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in teacher.modules()
    )


def test_layers_can_be_named(teacher):
    assert find_stages(teacher, ("features.1", "features.3")).layers == ("features.1", "features.3")
    with pytest.raises(
        EchosetError, match=r"no layer 'featurs' that gives maps .* its parts are features, head"
    ):
        find_stages(teacher, ("featurs",))
    named = replace(SHORT, loss={"at": 1.0}, teacher_layers=("features.1", "features.5"))
    learner = Learner(student_like(teacher), teacher, named)
    assert (
        learner.teacher_stages.layers == ("features.1", "features.5")
        and len(learner.student_stages.layers) == 2
    )


class Flat(torch.nn.Module):
    def __init__(self, classes: int = 10, size: int = 28, channels: int = 1) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(channels * size * size, classes)

    def forward(self, images):
        return self.linear(images.flatten(1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": {"hintn": 1.0}}, "no loss 'hintn'"),
        ({"loss": {"hinton": -1.0}}, "weight of loss 'hinton'"),
        ({"loss": {"hinton": float("nan")}}, "weight of loss 'hinton'"),
        ({"loss": {}}, "no loss has a weight"),
        ({"loss": {"dml": 1.0, "one": 1.0}}, "choose one of them"),
        ({"loss": {"dml": 1.0}, "peers": 1}, "peers must be at least 2"),
        ({"loss": {"one": 1.0}, "branches": 1}, "branches must be at least 2"),
        (
            {
                "loss": {"at": 1.0},
                "student_layers": ("features.1",),
                "teacher_layers": ("features.1", "features.3"),
            },
            "make no pairs",
        ),
        ({"loss": {"fsp": 1.0}, "student_layers": ("features.1",)}, "only one pair"),
        ({"loss": {"one": 1.0}, "student_layers": ("features.1",)}, "one stage only"),
        ({"ema": 1.0}, "ema"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"optimiser": "foo"}, "no optimiser 'foo'"),
        ({"patience": 1, "held_out": 0.0}, "leaves none to judge by"),
        ({"patience": 1, "held_out": 0.999}, "none to learn from"),
        ({"held_out": 1.0}, "held_out"),
        ({"patience": -1}, "patience"),
    ],
)
def test_what_cannot_be_done_is_refused(teacher, data, change, message):
    with pytest.raises(EchosetError, match=message):
        run(teacher, data, replace(SHORT, **change))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("operations", -1, "operations"),
        ("cutout", 8, "cutout is a part of the image's side"),
        ("shift", -0.1, "shift is a part"),
        ("rotate", float("nan"), "rotate"),
        ("mixup", 2.0, "mixup"),
        ("mixup", -0.5, "mixup must lie in"),
        ("cutmix", 50, "cutmix must lie in"),
        ("erase", 1.5, "erase must lie in"),
    ],
)
def test_views_that_cannot_be_made_are_refused_when_they_are_named(name, value, message):
    with pytest.raises(EchosetError, match=message):
        ViewOptions(**{name: value})


def test_a_network_without_maps_is_told_which_loss_to_use(teacher, data):
    flat = build_classifier(replace(teacher.spec, model=f"{__name__}.Flat", notes={}))
    with pytest.raises(EchosetError, match="use a loss on logits, such as hinton"):
        distill(
            flat,
            data,
            teacher,
            replace(SHORT, loss={"at": 1.0}),
            runtime=Runtime(device="cpu", quiet=True),
        )
    # What its last layer reads can be compared all the same.
    distill(
        flat,
        data,
        teacher,
        replace(SHORT, loss={"rkd": 1.0}),
        runtime=Runtime(device="cpu", quiet=True),
    )


def test_embeddings_of_a_network_with_a_linear_head_and_of_one_without(teacher, data):
    for loss in ({"rkd": 1.0}, {"rkd": 1.0, "at": 1.0}, {"hints": 1.0}):
        layers = [
            nn.Conv2d(1, 6, 5),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 10, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        headless = Classifier(nn.Sequential(*layers), replace(teacher.spec, model="mine", notes={}))
        distill(
            headless,
            data,
            teacher,
            replace(SHORT, loss=loss),
            runtime=Runtime(device="cpu", quiet=True),
        )
        distill(
            student_like(teacher),
            data,
            headless.eval(),
            replace(SHORT, loss=loss),
            runtime=Runtime(device="cpu", quiet=True),
        )


@pytest.mark.parametrize("method", ["dml", "one"])
def test_peers_and_branches_need_a_student_that_can_be_built_again(teacher, data, method):
    whole = student_like(teacher)
    for name in ("mine", "convnet-8"):  # no name of anything, and another network's
        mine = Classifier(whole.network, replace(whole.spec, model=name))
        with pytest.raises(EchosetError, match=f"'{name}' doesn't say how to build it"):
            distill(
                mine,
                data,
                teacher,
                replace(SHORT, loss={method: 1.0}),
                runtime=Runtime(device="cpu", quiet=True),
            )


def test_a_student_that_answers_otherwise_in_training_is_told_so():
    options = StudentOptions("googlenet", {"init_weights": False})
    like = {
        "channels": 3,
        "size": 32,
        "classes": 10,
        "task": "classification",
        "mean": (0.5,),
        "std": (0.5,),
    }
    with pytest.raises(
        EchosetError, match=r"GoogLeNetOutputs while it is trained.*aux_logits=false"
    ):
        build_student(options, like)
    build_student(replace(options, arguments={"init_weights": False, "aux_logits": False}), like)


def test_a_job_is_another_with_another_dropout(teacher, data):
    student = student_like(teacher)
    other = Classifier(student.network, replace(student.spec, arguments={"dropout": 0.5}))
    cpu = Runtime(device="cpu")
    key = lesson_key(student, data, teacher, SHORT, cpu)
    assert key != lesson_key(other, data, teacher, SHORT, cpu)


def test_without_a_teacher_only_labels_teach(teacher, data):
    student = student_like(teacher)
    for loss in ({"labels": 1.0}, {"dml": 1.0}, {"one": 1.0}):
        distill(
            student,
            data,
            None,
            replace(SHORT, loss=loss, labels="data"),
            runtime=Runtime(device="cpu", quiet=True),
        )
    with pytest.raises(EchosetError, match="loss hinton needs a teacher"):
        distill(
            student,
            data,
            None,
            replace(SHORT, labels="data"),
            runtime=Runtime(device="cpu", quiet=True),
        )
    with pytest.raises(EchosetError, match="labels='data'"):
        distill(
            student,
            data,
            None,
            replace(SHORT, loss={"labels": 1.0}),
            runtime=Runtime(device="cpu", quiet=True),
        )


def test_labels_from_data_must_be_there_and_fit(teacher, data):
    options = replace(SHORT, labels="data")
    with pytest.raises(EchosetError, match="has no labels; use labels=teacher"):
        run(teacher, replace(data, labels=None), options)
    with pytest.raises(EchosetError, match="labels from 0 to 11"):
        run(teacher, replace(data, labels=torch.arange(120) // 10), options)


def test_images_of_another_size_and_in_colour_are_fitted(teacher):
    torch.manual_seed(0)
    colour = Images(torch.randint(256, (40, 3, 40, 50), dtype=torch.uint8), None, "colour")
    assert run(teacher, colour, SHORT).steps == 4


@pytest.mark.parametrize("name", ["muon", "sgd", "adamw"])
def test_every_optimiser_learns(teacher, data, name):
    result = run(
        teacher, data, replace(SHORT, steps=200, optimiser=name, views=ViewOptions()), "convnet-8"
    )
    assert result.agreement > 0.6


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_scheduled_optimisers_follow_torch(name):
    """The rate is the peak's share, matrices decay and vectors don't."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimiser = make_optimiser(ours, name, 0.1, 0.01)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.01},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    reference = (
        torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.AdamW(groups, 0.1)
    )
    for share in (1.0, 0.5, 0.1):
        optimiser.set_share(share)
        for group in reference.param_groups:
            group["lr"] = 0.1 * share
        for network, each in ((ours, optimiser), (theirs, reference)):
            each.zero_grad()
            network(torch.ones(4, 3)).square().sum().backward()
            each.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_ema_is_the_average_of_the_students(teacher, data):
    plain = run(teacher, data, replace(SHORT, steps=1)).student.state_dict()
    averaged = run(teacher, data, replace(SHORT, steps=1, ema=0.9)).student.state_dict()
    first = student_like(teacher).state_dict()
    decay = 2 / 11  # a young average moves faster: (1 + n)/(10 + n)
    for name, value in averaged.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, decay * first[name] + (1 - decay) * plain[name], rtol=1e-4, atol=1e-5
            )


def test_patience_stops_and_keeps_the_student_that_agreed_most(teacher, data, tmp_path):
    from distill.files import read_log

    # A rate of zero learns nothing, so nothing rises after the first look.
    options = replace(
        SHORT, steps=2000, learning_rate=0.0, patience=2, optimiser="sgd", held_out=0.25
    )
    result = run(teacher, data, options, folder=tmp_path)
    seen = [event["held_out_agreement"] for event in read_log(tmp_path / "log.jsonl")]
    assert result.steps < 2000 and result.steps == 50 * len(seen)
    assert result.held_out_agreement == max(seen) and len(seen) - 1 - seen.index(max(seen)) == 2


def test_held_out_images_are_never_trained_on(teacher, data, monkeypatch):
    seen = []

    def spy(pool, index, view, options, seed):
        seen.append(pool)
        return make_views(pool, index, view, options, seed)

    monkeypatch.setattr("distill.lessons.make_views", spy)
    run(teacher, data, replace(SHORT, patience=5, held_out=0.25))
    assert seen and all(len(pool) == 90 for pool in seen)


def test_resumed_training_ends_with_the_same_student(teacher, data, tmp_path, monkeypatch):
    """Stopped after every step, with everything on that has a state."""
    from distill.loop import Interrupted

    options = replace(
        SHORT, steps=6, loss={"one": 1.0, "fitnet": 10.0}, ema=0.9, optimiser="adamw", patience=3
    )
    whole = run(teacher, data, options).student.weight_hash()

    class Stopped:
        raised = True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    for _ in range(6):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr("distill.loop.StopFlag", Stopped)
            run(teacher, data, options, folder=tmp_path)
    assert run(teacher, data, options, folder=tmp_path).student.weight_hash() == whole


def test_boundary_samples_end_at_three_quarters(teacher, data, monkeypatch):
    pushed = []

    def spy(network, images, *rest):
        pushed.append(len(images))
        return push_over(network, images, *rest)

    monkeypatch.setattr("distill.methods.boundary.push_over", spy)
    run(teacher, data, replace(SHORT, steps=8, loss={"bss": 1.0}))
    assert pushed == [4] * 6


def test_pushed_images_leave_the_running_statistics_alone(teacher, data):
    found = []
    for name in ("hinton", "bss"):
        learner = Learner(
            student_like(teacher), teacher, replace(SHORT, loss={name: 1.0, "labels": 0.0})
        ).train()
        learner(*lesson(teacher, data, SHORT, learner))
        found.append(
            [value for key, value in learner.student.state_dict().items() if "running" in key]
        )
        assert all(
            layer.momentum == 0.1
            for layer in learner.student.modules()
            if isinstance(layer, nn.BatchNorm2d)
        )
    assert all(map(torch.equal, *found))


def test_a_network_teaches_and_then_learns(teacher, data):
    first, second = student_like(teacher).train(), student_like(teacher, seed=1)
    before = [parameter.detach().clone() for parameter in first.parameters()]
    distill(second, data, first, SHORT, runtime=Runtime(device="cpu", quiet=True))
    assert first.training and all(map(torch.equal, before, first.parameters()))
    assert_learnt(
        distill(first, data, second, SHORT, runtime=Runtime(device="cpu", quiet=True)).student,
        before,
    )
    with pytest.raises(EchosetError, match="weights are frozen"):
        distill(first.requires_grad_(False), data, second, SHORT)


def test_a_rate_of_zero_learns_nothing(teacher, data):
    before = student_like(teacher).parameters()
    after = run(teacher, data, replace(SHORT, learning_rate=0.0)).student.parameters()
    assert all(map(torch.equal, before, after))


def kl(truth, guess, temperature):
    """T²·KL, averaged over images."""
    p, q = ((logits / temperature).log_softmax(1) for logits in (truth, guess))
    return (p.exp() * (p - q)).sum(1).mean() * temperature**2


@pytest.mark.parametrize("name", ["labels", *(name for name in SINGLE if name != "bss")])
def test_each_loss_compares_what_it_is_defined_on(teacher, data, name):
    """At a temperature of its own, and with labels that the teacher does not share."""
    together = name in ("dml", "one")
    weights = {"labels": float(together), name: 2.0}
    learner = Learner(
        student_like(teacher), teacher, replace(SHORT, loss=weights, temperature=3.0)
    ).eval()
    student, images, share = learner.student, to_input(data.images[:16]), torch.tensor(0.1)
    with (
        torch.no_grad(),
        Taps(student, find_stages(student)) as mine,
        Taps(teacher, find_stages(teacher)) as theirs,
    ):
        logits, answers = student(images), teacher(images)
    labels = torch.eye(10)[(answers.argmax(1) + 1) % 10]
    with torch.no_grad():
        given = answers if learner.takes_answers else torch.empty(0)
        loss, ours, told = learner(images, given, labels, share, torch.rand(16))
        pairs, everyone, adapted = list(zip(mine.maps, theirs.maps, strict=True)), [logits], []
        if name in ("fitnet", "fsp"):
            adapted = [
                (adapter(m), t)
                for adapter, (m, t) in zip(learner.parts["Projections"].layers, pairs, strict=True)
            ]
        if name == "hints":  # at the size of the last map, and the embedding as one more
            side = mine.maps[-1].shape[2:]
            small = [
                (F.adaptive_avg_pool2d(m, side), F.adaptive_avg_pool2d(t, side)) for m, t in pairs
            ]
            small.append((mine.embedding[:, :, None, None], theirs.embedding[:, :, None, None]))
            adapted = [
                (reader(m), t)
                for reader, (m, t) in zip(learner.parts["HintReaders"].layers, small, strict=True)
            ]
        if name == "dml":
            everyone += [peer(images) for peer in learner.parts["Peers"].networks]
        if name == "one":
            everyone += [tail(mine.maps[-2]) for tail in learner.parts["Tails"].networks]
            gates = learner.parts["Tails"].gate(mine.maps[-2].mean((2, 3)))
            everyone.append(sum(gates[:, i, None] * each for i, each in enumerate(everyone)))
        expected = {
            "labels": lambda: F.cross_entropy(logits, labels.argmax(1)),
            "hinton": lambda: kl(answers, logits, 3.0),
            "mse": lambda: (logits - answers).square().mean(),
            "fitnet": lambda: sum(fitnet_loss(*pair) for pair in adapted) / 3,
            "hints": lambda: sum(hint_loss(*pair) for pair in adapted) / 4,
            "at": lambda: sum(attention_loss(*pair) for pair in pairs),
            "fsp": lambda: sum(fsp_loss((a, b), (t, u)) for (a, t), (b, u) in pairwise(adapted)),
            "sp": lambda: similarity_loss(*pairs[-1]),
            "rkd": lambda: relational_loss(mine.embedding, theirs.embedding),
            "rkd-d": lambda: distance_loss(mine.embedding, theirs.embedding),
            "rkd-a": lambda: angle_loss(mine.embedding, theirs.embedding),
            "dml": lambda: kl(everyone[0], everyone[1], 1.0) + kl(everyone[1], everyone[0], 1.0),
            "one": lambda: (
                math.exp(-5 * 0.75**2) * sum(kl(everyone[-1], each, 3.0) for each in everyone[:-1])
            ),
        }
        exact = 2 * expected[name]() + together * sum(
            F.cross_entropy(each, labels.argmax(1)) for each in everyone
        )
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(told, answers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "share, own, pushed", [(0.0, 4.0, 2.0), (0.375, 2.875, 1.0), (0.75, 1.75, 0.0), (1.0, 1.0, 0.0)]
)
def test_boundary_samples_count_less_and_less(teacher, data, monkeypatch, share, own, pushed):
    """The pushes are mirrored images here, and the second one never crosses."""
    student, asked, crossed = deepcopy(teacher), [], torch.tensor([True, False, True, True])
    for parameter in student.network.head.parameters():
        parameter.data.mul_(0.5)  # decides as the teacher does, less surely

    def push(network, images, base, target, unit):
        asked.append((network, unit))
        return images.flip(3), crossed

    monkeypatch.setattr("distill.methods.boundary.push_over", push)
    learner = Learner(student, teacher, replace(SHORT, loss={"bss": 1.0, "labels": 0.0})).eval()
    images, answers, _, _, draws = lesson(teacher, data, SHORT, learner)
    with torch.no_grad():
        loss = learner(images, answers, torch.empty(0), torch.tensor(share), draws)[0]

        def apart(ours, theirs):
            p, q = ((logits / 3).log_softmax(1) for logits in (theirs, ours))
            return (p.exp() * (p - q)).sum(1)

        alone = apart(student(images), answers)
        mirrored = images[alone.topk(4).indices].flip(3)
        exact = (
            own * alone.mean()
            + pushed * apart(student(mirrored), teacher(mirrored))[crossed].mean()
        )
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=1e-5)
    assert asked == [(learner._frozen[0], pytest.approx(0.3081))]


def test_the_student_that_agreed_most_is_handed_back_and_a_look_changes_nothing(
    teacher, data, monkeypatch
):
    """Of four decisions so many are made wrong: the teacher's none, then those at a look after
    every step.
    """
    wrong, seen = iter([0, 3, 1, 2, 1]), []

    def decide(judge, network):
        assert not network.training
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return torch.arange(4) < next(wrong)

    monkeypatch.setattr("distill.train.CHECK", 1)
    monkeypatch.setattr(Judge, "_decide", decide)
    result = run(teacher, data, replace(SHORT, steps=9, patience=2))
    assert (result.steps, result.held_out_agreement) == (4, 0.75)
    best, kept, last = seen[2], result.student.state_dict(), seen[4]
    assert all(torch.equal(value, best[name]) for name, value in kept.items())
    assert not torch.equal(best["network.head.weight"], last["network.head.weight"])
    # Every step between the looks was one of training: BatchNorm has counted them.
    assert [each["network.features.0.1.num_batches_tracked"].item() for each in seen[1:]] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    "model", ["wrn-10-1", "lenet5", "cifar-vgg11"]
)  # of other maps than the teacher's
@pytest.mark.parametrize("beside", [{"hinton": 1.0}, {"bss": 1.0}, {"dml": 1.0}])
def test_hints_come_with_the_lesson_where_they_fit(teacher, data, monkeypatch, model, beside):
    """Then the teacher is not asked again, and the loss is that of live hints."""
    options = replace(SHORT, steps=40, loss=beside | {"hints": 20.0})
    learner = Learner(student_like(teacher, model), teacher, options)
    lessons = Lessons(data, learner, 0, torch.device("cpu"))
    lessons.ask_beforehand(quiet=True)
    inputs = lessons.draw(torch.tensor(10), torch.Generator().manual_seed(0))
    answers, *hints = learner.ask_for_hints(inputs[0])
    torch.testing.assert_close(inputs[1], answers, rtol=1e-3, atol=1e-3)
    for banked, live in zip(inputs[5:], hints, strict=True):
        torch.testing.assert_close(
            banked.float(), live.float(), rtol=0.02, atol=0.02 * live.float().std().item()
        )
    banked, live = learner.eval()(*inputs)[0], learner(*inputs[:5])[0]
    torch.testing.assert_close(banked, live, rtol=0.01, atol=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(learner, "_ask_teacher", None)
        learner(*inputs)
    size = sum(part.nbytes for part in lessons.bank[1:])
    learner.options = replace(options, hints_gib=(size - 1) / 2**30)
    asking = Lessons(data, learner, 0, torch.device("cpu"))
    asking.ask_beforehand(quiet=True)
    assert not asking.bank and len(asking.draw(torch.tensor(0), torch.Generator())) == 5


def test_hints_of_large_images_are_made_small_part_by_part(teacher, monkeypatch):
    alive, most = WeakSet(), []

    def ask(images):
        maps = [torch.rand(len(images), 16, 56, 56), torch.rand(len(images), 32, 7, 7)]
        alive.update(maps)
        most.append(len(alive))
        return images.mean((2, 3)), maps, torch.rand(len(images), 32)

    learner = Learner(student_like(teacher), teacher, replace(SHORT, loss={"hints": 1.0}))
    monkeypatch.setattr(learner, "_ask_teacher", ask)
    answers, *hints = learner.ask_for_hints(torch.rand(100, 3, 224, 224))
    assert len(most) > 2 and max(most) <= 4 and len(answers) == 100
    assert [hint.shape[1:] for hint in hints] == [(16, 7, 7), (32, 7, 7), (32, 1, 1)]


def test_a_run_with_hints_that_was_killed_asks_for_them_again(teacher, data, tmp_path, monkeypatch):
    """No file holds them, and the student is the one that would have been."""
    options = replace(SHORT, steps=20, loss={"hinton": 1.0, "hints": 1.0})
    whole = run(teacher, data, options).student.weight_hash()
    asked = []
    ask = Learner.ask_for_hints
    monkeypatch.setattr(
        Learner, "ask_for_hints", lambda *given: asked.append(len(given[1])) or ask(*given)
    )

    class Killed(Exception):
        pass

    def step(training):
        if training.state.step == 10:
            training._save(1.0)
            raise Killed
        return usual(training)

    usual = _Training._step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_Training, "_step", step)
        run(teacher, data, options, folder=tmp_path)
    assert [path.name for path in tmp_path.glob("*.state")] == ["student.state"]
    first = list(asked)
    asked.clear()
    assert run(teacher, data, options, folder=tmp_path).student.weight_hash() == whole
    assert sum(first) > len(data) and asked == first


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("per_image", [0, 2])
def test_a_lesson_gives_each_image_its_own_answer_and_label(
    teacher, data, monkeypatch, per_image, patience
):
    asked = []
    monkeypatch.setattr(
        "distill.lessons.make_views", lambda *given: asked.append(given[2]) or make_views(*given)
    )
    options = replace(
        SHORT, steps=40, labels="data", views_per_image=per_image, patience=patience, held_out=0.25
    )

    def true_labels(images):
        pixels = (images * 255).round().to(torch.uint8)
        same = (pixels[:, None] == data.images[None]).flatten(2).all(2)
        assert (same.sum(1) == 1).all()
        return data.labels[same.int().argmax(1)]

    still = ViewOptions(rotate=0, scale=0, shift=0)
    for views in (still, ViewOptions()):
        learner = Learner(student_like(teacher), teacher, replace(options, views=views))
        lessons = Lessons(data, learner, 0, torch.device("cpu"))
        lessons.ask_beforehand(quiet=True)
        assert bool(lessons.bank) == bool(per_image)
        images, answers, labels, share, _ = lessons.draw(
            torch.tensor(10), torch.Generator().manual_seed(0)
        )
        torch.testing.assert_close(answers, teacher(images), rtol=1e-3, atol=1e-3)
        assert share == 0.25 and (
            views is not still or torch.equal(labels, F.one_hot(true_labels(images), 10).float())
        )
    if per_image:
        assert all(set(view.tolist()) <= {0, 1} for view in asked)
    else:
        assert all(torch.equal(view, 160 + torch.arange(16)) for view in asked)
    if patience:
        assert len(lessons.held_out) == 30 and len(lessons.pool) == 90
        assert torch.equal(lessons.held_out_labels, true_labels(lessons.held_out / 255))
