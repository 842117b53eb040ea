"""What a user brings along from Python: networks, losses, terms, sources, optimisers.
`tests/test_docs.py` runs the blocks of docs/extending.md; here is what they leave behind.
"""

import inspect
import itertools
from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from stopping import stopped
from torch import nn

import distill
import inversion
from distill import (
    Classifier,
    DistillOptions,
    Method,
    ModelSpec,
    as_classifier,
    build_student,
)
from distill import distill as teach
from distill.options import StudentOptions
from distill.runtime import Runtime
from inversion import CollectOptions, SynthesisOptions, collect, synthesize, synthesize_share
from inversion.recipes.ssdkd import SSDKD
from synthesis_kernels.errors import EchosetError

RUN = Runtime(seed=1, device="cpu", precision="float32", quiet=True)
SMALL = replace(tiny_options(), images=20, batch=20)
LESSON = DistillOptions(steps=20, batch=16, views_per_image=1)


def network(channels=1, classes=10):
    layers = [nn.Conv2d(channels, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 13 * 13, classes))


def generator():
    return nn.Sequential(nn.Linear(128, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28)))


def rough(images, logits, wanted):
    return (images[..., 1:] - images[..., :-1]).abs().mean()


def absolute(batch):
    return (batch.logits - batch.answers).abs().mean()


class Seen:
    def __init__(self):
        self.calls = []

    def log(self, figures, step):
        self.calls.append((step, figures))


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "set"
    return collect(
        teacher, ["noise"], CollectOptions(images=40, balanced=False, expose=0.0), out, RUN
    )


@pytest.mark.parametrize("recipe", ["ssd-kd", "adversarial"])
def test_a_term_a_generator_and_an_adversary_make_a_set_that_names_them(teacher, recipe, tmp_path):
    options = replace(SMALL, recipe=recipe, calls=3)
    own = {"terms": {rough: 5.0}, "generator": generator(), "adversary": network()}
    seen = Seen()
    made = synthesize(teacher, options, tmp_path / "set", RUN, **own, log=seen)
    assert len(made) + sum(made.manifest["short"].values()) == 20
    assert made.manifest["own"]["terms"]["rough"][0] == 5.0
    assert {"terms", "generator", "adversary"} == set(made.manifest["own"])
    first, last = seen.calls[0][1], seen.calls[-1][1]
    assert last["synthesis/rough"] != first["synthesis/rough"]
    with pytest.raises(EchosetError, match="other options"):
        synthesize(teacher, options, tmp_path / "set", RUN, **{**own, "adversary": None})


def test_a_recipe_of_ones_own_makes_the_set_and_is_named(teacher, tmp_path):
    ranks = []

    class Surest(SSDKD):
        def take(self, made):
            images, logits, _, figures = made
            ranks.append(logits.softmax(1).amax(1))
            return super().take((images, logits, ranks[-1], figures))

    options = replace(SMALL, calls=2)
    made = synthesize(teacher, options, tmp_path / "set", RUN, recipe=Surest)
    assert ranks and made.manifest["own"]["recipe"].split()[0].endswith("Surest")
    with pytest.raises(EchosetError, match="other options"):
        synthesize(teacher, options, tmp_path / "set", RUN)


def test_a_heavier_term_smooths_what_the_generator_makes(teacher, tmp_path):
    options = replace(SMALL, calls=4)
    last = []
    for weight in (0.0, 1000.0):
        seen = Seen()
        synthesize_share(
            teacher, options, tmp_path / f"{weight}", RUN, terms={rough: weight}, log=seen
        )
        last.append(seen.calls[-1][1]["synthesis/rough"])
    assert last[1] < last[0]


def test_without_anything_of_ones_own_a_manifest_says_nothing_of_it(teacher, tmp_path):
    options = replace(SMALL, calls=1, images=10)
    assert "own" not in synthesize(teacher, options, tmp_path, RUN).manifest


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"generator": nn.Linear(128, 784)}, "the generator makes"),
        ({"generator": nn.Linear(64, 784)}, "does not take noise of shape"),
        (
            {"generator": nn.Sequential(generator(), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))},
            "end it with a sigmoid",
        ),
        ({"adversary": network(channels=3)}, "does not take images of shape"),
        ({"terms": {"rough": 1.0}}, "a term is a function"),
        ({"terms": rough}, "terms are a mapping of functions"),
        ({"terms": {rough: float("nan")}}, "weight must be a number"),
        ({"terms": {lambda *_: 3.0: 1.0}}, "must give one number"),
    ],
)
def test_what_cannot_take_part_is_refused(teacher, own, message, tmp_path):
    options = replace(SMALL, calls=1, images=10)
    with pytest.raises(EchosetError, match=message):
        synthesize(teacher, options, tmp_path / "set", RUN, **own)


def test_a_loss_and_an_optimiser_of_ones_own_teach_and_go_on_after_a_stop(teacher, made, tmp_path):
    own = {
        "losses": {"hinton": 1.0, absolute: 0.5},
        "optimiser": lambda weights: torch.optim.RMSprop(weights, lr=1e-3),
    }
    student = build_student(StudentOptions("convnet-8"), teacher.contract)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    teach(student, made, teacher, LESSON, tmp_path / "whole", RUN, **own)
    again = build_student(StudentOptions("convnet-8"), teacher.contract)
    again.load_state_dict(weights)
    with stopped(lambda loop, done: loop.work == "distillation" and done == 7):
        teach(again, made, teacher, LESSON, tmp_path / "stopped", RUN, **own)
    with pytest.raises(EchosetError, match="other options"):
        teach(again, made, teacher, LESSON, tmp_path / "stopped", RUN, losses={absolute: 1.0})
    teach(again, made, teacher, LESSON, tmp_path / "stopped", RUN, **own)
    for one, other in zip(student.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_of_ones_own_brings_no_labels_along(teacher, made):
    from distill.learner import Learner

    student = build_student(StudentOptions("convnet-8"), teacher.contract)
    assert Learner(student, teacher, LESSON, losses={absolute: 2.0}).weights == {"absolute": 2.0}
    maps = Method("far", 3.0, frozenset({"maps"}), lambda batch: batch.maps[0].mean())
    learner = Learner(student, teacher, LESSON, losses={maps: None})
    assert learner.weights == {"labels": 1.0, "far": 3.0}
    images = torch.rand(2, 1, 28, 28)
    nothing = torch.empty(0)
    loss, _, _ = learner(images, nothing, nothing, torch.zeros(()), nothing)
    assert loss.requires_grad


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"losses": {"hintn": 1.0}}, "did you mean hinton"),
        ({"losses": {3: 1.0}}, "a function of a batch or a Method, not a int"),
        ({"losses": [absolute]}, "losses are a mapping .* not a list"),
        ({"losses": {lambda batch: batch.logits: 1.0}}, r"must give one number, .* got \(16, 10\)"),
        ({"losses": {lambda batch: 3.0: 1.0}}, r"must give one number, .* got float"),
        (
            {"losses": {lambda batch: batch.logits.sum().detach(): 1.0}},
            "make yours of batch.logits",
        ),
        ({"losses": {Method("mse", 1.0, frozenset(), absolute): 1.0}}, "a loss mse already"),
        ({"optimiser": lambda weights: 3}, "torch.optim.Optimizer"),
        ({"log": 3}, r"log\(figures, step\)"),
    ],
)
def test_what_cannot_teach_is_refused(teacher, made, more, message):
    with pytest.raises(EchosetError, match=message):
        teach(network(), made, teacher, LESSON, runtime=RUN, **more)


def test_a_folders_name_is_no_set_and_a_mapping_no_options(teacher):
    with pytest.raises(
        EchosetError, match=r"as TransferSet\.load\(folder\) gives it, .* not a str"
    ):
        teach(network(), "runs/set", teacher, LESSON, runtime=RUN)
    with pytest.raises(EchosetError, match=r"generator is GeneratorOptions\(…\), got a dict"):
        SynthesisOptions(generator={"latent": 16})


def test_a_plain_module_is_a_student_as_the_teacher_says(teacher, made):
    student = network()
    before = student[0].weight.detach().clone()
    result = teach(student, made, teacher, LESSON, runtime=RUN)
    assert result.student.network is student
    assert result.student.contract == teacher.contract
    assert not torch.equal(before, student[0].weight)


def test_a_plain_module_is_the_teacher_that_made_the_set(teacher, made):
    lesson = replace(LESSON, views_per_image=2, steps=2)
    students = [network(), network()]
    students[1].load_state_dict(students[0].state_dict())
    for student, asked in zip(students, (teacher, teacher.network), strict=True):
        teach(student, made, asked, lesson, runtime=RUN)
    for one, other in zip(*(student.parameters() for student in students), strict=True):
        assert torch.equal(one, other)
    assert not teacher.network.training


def test_a_plain_module_says_what_it_can_and_asks_for_the_rest(made):
    plain = network(channels=3, classes=7)
    with pytest.raises(EchosetError, match=r"does not say its size, mean, std.*as_classifier"):
        synthesize(plain)
    with pytest.raises(EchosetError, match=r"does not say its mean, std"):
        as_classifier(plain, size=28)
    plain.train()
    mine = as_classifier(plain, size=28, mean=0.5, std=(0.2, 0.2, 0.2))
    assert (mine.spec.channels, mine.spec.classes, mine.spec.mean) == (3, 7, (0.5,))
    assert plain.training
    assert as_classifier(mine) is mine
    with pytest.raises(EchosetError, match="does not take images of shape"):
        as_classifier(plain, size=64, mean=0.0, std=1.0)
    with pytest.raises(EchosetError, match="not a str"):
        as_classifier("resnet18")


class Several(torch.nn.Module):
    """Answers with what it is told to make of the logits."""

    def __init__(self, answer):
        super().__init__()
        self.inner = network(classes=5)
        self.answer = answer

    def forward(self, images):
        return self.answer(self.inner(images))


def test_a_plain_module_may_answer_with_several_tensors():
    told = {"size": 28, "mean": 0.5, "std": 0.25}
    named = as_classifier(Several(lambda z: {"features": z.new_ones(2, 9), "logits": z}), **told)
    assert named.spec.classes == 5
    pair = Several(lambda z: (z.new_ones(2, 9), z))
    with pytest.raises(EchosetError, match=r"0 \(2, 9\), 1 \(2, 5\).*say classes=.*output="):
        as_classifier(pair, **told)
    assert as_classifier(pair, output="1", **told).spec.classes == 5
    assert as_classifier(Several(lambda z: z[:, :1]), **told).spec.classes == 2


def test_a_wrapped_student_with_a_softmax_is_read_right(teacher, made):
    """Whoever wrapped it: what its answers are is found out before it learns."""
    spec = ModelSpec("mine", **{key: getattr(teacher.spec, key) for key in ("mean", "std")})
    student = Classifier(Several(lambda z: z.softmax(1)), replace(spec, classes=5)).train()
    student.network.inner.eval()
    assert as_classifier(student).spec.output_form == "probabilities"
    assert student.training and not student.network.inner.training

    body = torch.nn.Sequential(network(), torch.nn.Softmax(1))
    assert as_classifier(body, size=28, mean=0.5, std=0.25).spec.output_form == "probabilities"
    student = Classifier(body, spec)
    teach(student, made, teacher, LESSON, runtime=RUN)
    assert student.spec.output_form == "probabilities"


class Bars(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.eye(28).roll(index, 1)[None].cumsum(1).clamp(0, 1), index


class Grey:
    def draw(self, random, count, channels, height, width):
        return random.uniform(count, 1, 1, 1).expand(count, channels, height, width)


def test_sources_of_ones_own_are_walked_like_others(teacher, tmp_path):
    endless = (torch.rand(1, 28, 28) for _ in itertools.count())
    options = CollectOptions(images=30, balanced=False, draws=2, expose=0.0)
    made = collect(teacher, [Bars(), Grey(), "noise"], options, tmp_path / "set", RUN)
    assert made.manifest["collection"]["sources"] == ["Bars", "Grey", "noise"]
    seen = collect(teacher, [endless], options, tmp_path / "endless", RUN)
    assert len(seen) == 30
    both = collect(
        teacher,
        [Bars(), Bars()],
        CollectOptions(images=80, balanced=False, expose=0.0),
        tmp_path / "b",
        RUN,
    )
    assert both.manifest["collection"]["sources"] == ["Bars", "Bars #2"]
    with pytest.raises(EchosetError, match="int is no source"):
        collect(teacher, [3], options, tmp_path / "none", RUN)


def test_a_source_that_draws_otherwise_is_another(teacher, tmp_path):
    class Grey:
        def draw(self, random, count, channels, height, width):
            return random.uniform(count, channels, height, width) / 2

    options = CollectOptions(images=20, balanced=False, expose=0.0)
    collect(teacher, [globals()["Grey"]()], options, tmp_path, RUN)
    with pytest.raises(EchosetError, match="other options, sources"):
        collect(teacher, [Grey()], options, tmp_path, RUN)


def test_synthesize_makes_a_whole_set_or_says_who_shares_one(teacher):
    with pytest.raises(EchosetError, match="call synthesize_share"):
        synthesize(teacher, runtime=Runtime(rank=0, world=2))
    names = list(inspect.signature(synthesize).parameters)
    assert names == list(inspect.signature(synthesize_share).parameters)


def test_names_are_completed_and_signatures_are_short():
    for package in (distill, inversion):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            made = getattr(package, name)
            if inspect.isfunction(made):
                assert len(str(inspect.signature(made))) < 600, name
    assert repr(SynthesisOptions()) == "SynthesisOptions()"
    changed = SynthesisOptions(images=9, generator=inversion.options.GeneratorOptions(width=8))
    assert repr(changed) == "SynthesisOptions(images=9, generator=GeneratorOptions(width=8))"
    assert repr(Runtime(seed=3, rank=0, world=1)) == "Runtime(seed=3)"
