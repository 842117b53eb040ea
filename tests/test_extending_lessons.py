"""What a user brings along from Python to a lesson: losses, an optimiser, plain modules."""

from dataclasses import replace

import pytest
import torch
from stopping import stopped
from test_extending import RUN, network

from distill import Classifier, DistillOptions, Method, ModelSpec, as_classifier, build_student
from distill import distill as teach
from distill.options import StudentOptions
from inversion import CollectOptions, SynthesisOptions, collect, synthesize
from synthesis_kernels.errors import EchosetError

LESSON = DistillOptions(steps=20, batch=16, views_per_image=1)


def absolute(batch):
    return (batch.logits - batch.answers).abs().mean()


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "set"
    return collect(
        teacher, ["noise"], CollectOptions(images=40, balanced=False, expose=0.0), out, RUN
    )


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
    with pytest.raises(EchosetError, match=r"generator must be GeneratorOptions\(…\), got {"):
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
