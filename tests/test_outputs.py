"""Teachers as people have them: what they answer with, and how that becomes logits."""

import json
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import TINY_FLAGS, last_json
from safetensors import safe_open
from torch import nn

from distill import (
    Classifier,
    ModelSpec,
    build_classifier,
    load_classifier,
    save_classifier,
)
from distill.models.contract import check_contract
from distill.models.frozen import Frozen
from distill.models.outputs import find_logits
from distill.runtime import Runtime
from distill.sets.transfer_set import TransferSet
from distill.views import to_input
from inversion import CollectOptions, TeacherOptions, collect, inspect_teacher, load_teacher
from synthesis_kernels.errors import EchosetError

Pair = namedtuple("Pair", "features scores")


@dataclass
class Answer:
    loss: None
    logits: torch.Tensor
    hidden: torch.Tensor


class Body(nn.Module):
    """A small network with BatchNorm that answers in whatever form."""

    def __init__(self, form="plain", channels: int = 1, classes: int = 4):
        super().__init__()
        torch.manual_seed(1)
        self.form = form
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2)
        )
        self.head = nn.Linear(8, classes)
        self.features[1].running_mean.uniform_(-0.2, 0.2)
        self.features[1].running_var.uniform_(0.1, 0.3)
        nn.init.normal_(self.head.weight, std=4.0)

    def forward(self, x):
        hidden = self.features(x).mean((2, 3))
        return FORMS[self.form](self.head(hidden), hidden)


FORMS = {
    "plain": lambda z, h: z,
    "log": lambda z, h: z.log_softmax(1),
    "softmax": lambda z, h: z.softmax(1),
    "sigmoid": lambda z, h: z.sigmoid(),
    "dict": lambda z, h: {"features": h, "prediction": z},
    "named": lambda z, h: {"aux": z * 2, "logits": z},
    "out": lambda z, h: {"out": z, "aux": z * 2},
    "tuple": lambda z, h: (z, h),
    "list": lambda z, h: [h, z],
    "namedtuple": lambda z, h: Pair(h, z),
    "dataclass": lambda z, h: Answer(None, z, h),
    "nested": lambda z, h: {"heads": (z.softmax(1), h), "maps": None},
    "two": lambda z, h: (z, -z),
    "none": lambda z, h: {"features": h, "pooled": h},
    "two heads": lambda z, h: torch.cat([z[:, :2].sigmoid(), z[:, 2:].sigmoid()], 1),
    "by hand": lambda z, h: 1 / (1 + (-z).exp()),
    "hard": lambda z, h: torch.nn.functional.hardsigmoid(60 * z),
    "percent": lambda z, h: 100 * z.softmax(1),
    "point": lambda z, h: z[:, :, None, None],
    "squeezed": lambda z, h: z.squeeze(1),
    "squeezed sigmoid": lambda z, h: z.sigmoid().squeeze(1),
}


def make(form: str = "plain", channels: int = 1, classes: int = 4):
    return Body(form, channels, classes)


def load(form, classes=4, numbers=None, channels=1, size=20, **options):
    given = {"form": form, "channels": channels, "classes": numbers or classes}
    shape = {"channels": channels, "size": size, "classes": classes}
    return load_teacher(TeacherOptions("test_outputs.make", None, given, **shape, **options))


IMAGES = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ("dict", "prediction"),
        ("named", "logits"),
        ("out", "out"),
        ("tuple", "0"),
        ("list", "1"),
        ("namedtuple", "scores"),
        ("dataclass", "logits"),
        ("nested", "heads.0"),
    ],
)
def test_the_obvious_logits_are_found_and_inspect_says_where(form, place):
    teacher = load(form)
    assert teacher.spec.output == place
    assert f"at '{place}'" in inspect_teacher(teacher).output
    wanted = load("plain")(IMAGES).softmax(1)
    torch.testing.assert_close(teacher(IMAGES).softmax(1), wanted)
    for precision in (torch.float32, torch.bfloat16):
        frozen, (mean, _) = Frozen(teacher, precision).with_moments(IMAGES)
        torch.testing.assert_close(frozen.softmax(1), wanted, rtol=0.1, atol=0.05)
        assert mean.shape == (8,)


def test_one_of_several_may_be_named():
    with pytest.raises(EchosetError, match=r"0 \(2, 4\), 1 \(2, 4\).*2 of them.*--teacher.output"):
        load("two")
    torch.testing.assert_close(load("two", output="1")(IMAGES), -load("plain")(IMAGES))


@pytest.mark.parametrize(
    ("form", "output", "said"),
    [
        ("dict", "logit", r"no 'logit', but features \(2, 8\), prediction \(2, 4\)"),
        ("plain", "0", "leave output away"),
        ("none", None, r"pooled \(2, 8\).*none of them has the shape \(2, 4\)"),
    ],
)
def test_what_is_not_there_is_said(form, output, said):
    with pytest.raises(EchosetError, match=said):
        load(form, output=output)


@pytest.mark.parametrize(
    ("form", "found"),
    [("plain", None), ("log", None), ("softmax", "probabilities"), ("sigmoid", "sigmoid")],
)
def test_probabilities_are_recognised_and_become_logits(form, found):
    teacher = load(form)
    assert teacher.spec.output_form == found
    warnings = inspect_teacher(teacher).warnings
    assert any("it seems to answer" in line for line in warnings) is (found is not None)
    ways = f"say --teacher.output_form {found}, or output_form='{found}' in Python"
    assert any(ways in line for line in warnings) is (found is not None)
    plain = load("plain")(IMAGES)
    torch.testing.assert_close(teacher(IMAGES).softmax(1), plain.softmax(1))
    if form == "sigmoid":
        torch.testing.assert_close(teacher(IMAGES), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["two heads", "by hand", "hard", "percent"])
def test_answers_that_may_be_probabilities_are_doubted(form):
    teacher = load(form)
    assert teacher.spec.output_form is None
    warnings = inspect_teacher(teacher).warnings
    assert any("its answers to test pictures are bounded" in line for line in warnings)
    assert not any("are bounded" in line for line in inspect_teacher(load("plain")).warnings)
    if form == "percent":
        with pytest.raises(
            EchosetError, match=r"numbers from .* to 9\d, which are no numbers of a"
        ):
            load(form, output_form="sigmoid")
        return
    told = load(form, output_form="sigmoid")
    assert not any("are bounded" in line for line in inspect_teacher(told).warnings)


def test_a_row_in_the_form_of_a_map_has_its_remedy():
    with pytest.raises(EchosetError, match=r"\(2, 4, 1, 1\).* end with \.flatten\(1\)"):
        load("point").check_forward()


def test_small_logits_are_no_sigmoid():
    class Small(Body):
        def forward(self, x):
            return 0.5 + 0.1 * super().forward(x).tanh()

    classifier = Classifier(Small(), ModelSpec("small", channels=1, size=20, classes=4)).eval()
    classifier.check_forward()
    assert classifier.spec.output_form is None


def test_what_is_told_of_the_form_counts():
    teacher = load("softmax", output_form="logits")
    assert teacher.spec.output_form == "logits"
    assert not any("it seems" in line for line in inspect_teacher(teacher).warnings)
    assert torch.equal(teacher(IMAGES), teacher.network(IMAGES))
    assert "output_form" not in teacher.contract


@pytest.mark.parametrize("told", ["sigmoid", "probabilities"])
def test_a_form_that_can_not_be_is_refused(told):
    with pytest.raises(EchosetError, match=r"numbers from -.* leave output_form out, or say"):
        load("plain", output_form=told)
    with pytest.raises(EchosetError, match=r"output_form must be one of logits, .* got 'prob'"):
        ModelSpec("plain", output_form="prob")


def test_gradients_come_through_a_saturated_softmax():
    teacher = load("softmax")
    images = (IMAGES * 30).requires_grad_()
    chances = teacher.network(images)
    assert chances.min() < 1e-9
    logits = teacher(images)
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.gather(1, chances.argmin(1, True)).sum(), images)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("form", ["plain", "squeezed", "sigmoid", "squeezed sigmoid"])
def test_one_number_decides_between_two_classes(form):
    teacher = load(form, classes=2, numbers=1)
    assert "−z/2 and z/2" in inspect_teacher(teacher).output
    z = load("plain", classes=2, numbers=1).network(IMAGES)
    torch.testing.assert_close(teacher(IMAGES), torch.cat([-z / 2, z / 2], 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(Frozen(teacher)(IMAGES), teacher(IMAGES))


def test_a_row_is_preferred_to_one_number():
    answer = {"uncertainty": torch.rand(2), "scores": torch.rand(2, 2)}
    assert find_logits(answer, (2, 2), "mine", None) == "scores"
    assert find_logits({"score": torch.rand(2), "id": torch.ones(2).long()}, (2, 2), "m", None)


def test_one_number_is_no_answer_for_more_classes():
    with pytest.raises(EchosetError, match=r"answers \(2, 1\) to two images, expected \(2, 4\)"):
        inspect_teacher(load("plain", classes=4, numbers=1))


# Kept with the network, and with what was made by it


def test_plain_files_and_contracts_are_as_before(tmp_path):
    plain = build_classifier(ModelSpec("convnet-4"))
    plain.check_forward()
    save_classifier(plain, tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        told = json.loads(file.metadata()["echoset"])
    assert not {"output", "output_form"} & (told.keys() | plain.contract.keys())


def test_a_file_remembers_what_was_found(tmp_path):
    path = tmp_path / "w.safetensors"
    teacher = load("nested")
    save_classifier(teacher, path)
    again = load_teacher(TeacherOptions("test_outputs.make", str(path), {"form": "nested"}))
    assert (again.spec.output, again.spec.output_form) == ("heads.0", "probabilities")
    assert again.contract == teacher.contract
    assert not again.remarks  # it was told
    assert torch.equal(again(IMAGES), teacher(IMAGES))


def test_a_set_remembers_what_was_found(tmp_path):
    options = CollectOptions(images=8, balanced=False)
    runtime = Runtime(device="cpu", quiet=True)
    collect(load("softmax"), ("noise",), options, tmp_path / "set", runtime)
    again = load_teacher(TeacherOptions(str(tmp_path / "set")), trust=True)
    assert again.spec.output_form == "probabilities"
    assert not again.remarks  # it was told


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"output": 3}, "output must be a name"), ({"output_form": "odds"}, "output_form must be")],
)
def test_a_damaged_memory_is_refused(entry, said):
    contract = build_classifier(ModelSpec("convnet-4")).contract
    with pytest.raises(EchosetError, match=said):
        check_contract({**contract, **entry}, "a manifest")


def flags(form, **options):
    arguments = json.dumps({"form": form})
    shape = {"channels": 1, "size": 20, "classes": 4, "arguments": arguments, **options}
    return ["--teacher=test_outputs.make", *(f"--teacher.{k}={v}" for k, v in shape.items())]


def softmax_copy():
    """The bundled teacher with a softmax behind it."""
    return nn.Sequential(load_teacher().network, nn.Softmax(1))


SOFTMAX_COPY = ["--teacher=test_outputs.softmax_copy", "--teacher.channels=1", "--teacher.size=28"]


def test_a_set_is_made_and_taught_by_probabilities_as_by_logits(run, tmp_path, teacher):
    spec = teacher.spec
    copy = [*SOFTMAX_COPY, f"--teacher.mean={list(spec.mean)}", f"--teacher.std={list(spec.std)}"]
    done = run("synthesize", *copy, f"--out={tmp_path}/set", "--quiet", *TINY_FLAGS)
    assert "softmax_copy: it seems to answer with probabilities" in done.stderr
    made = TransferSet.load(tmp_path / "set")
    assert made.manifest["input"]["output_form"] == "probabilities"
    pixels = to_input(made.images)
    plain = teacher(pixels)
    assert torch.equal(plain.argmax(1), made.labels)
    torch.testing.assert_close(made.logits.float(), plain.log_softmax(1), rtol=1e-2, atol=1e-2)

    # Training magnifies the last digit of an answer, so it is short.
    short = ["--distillation.steps=4", "--student=convnet-4", "--precision=float32", "--quiet"]
    images = f"--set={write_images(made, tmp_path)}"
    for name, given in (("copy", copy), ("plain", [])):
        out = f"--out={tmp_path}/{name}"
        run("distill", images, *given, out, *short)
    students = [
        load_classifier(tmp_path / name / "student.safetensors") for name in ("copy", "plain")
    ]
    answers = [student.eval()(pixels) for student in students]
    assert torch.equal(answers[0].argmax(1), answers[1].argmax(1))
    torch.testing.assert_close(*answers, rtol=1e-2, atol=1e-2)

    verify = ["verify", f"--set={tmp_path}/set", *copy, "--quiet", "--json"]
    assert last_json(run(*verify))["labels_differ"] == 0
    said = run(*verify, "--teacher.output_form=logits", status=1).stderr
    assert "another output_form of the teacher" in said


def write_images(made, folder):
    """The set's images alone, for whatever teacher."""
    path = folder / "images.npz"
    np.savez(path, images=made.images[:, 0].numpy(), labels=made.labels.numpy())
    return path


def test_inspect_says_what_is_taken(run):
    done = run("inspect", *flags("nested"), "--json")
    assert "probabilities, whose logarithms are taken as logits, at 'heads.0'" in done.stdout
    assert last_json(done)["spec"]["output_form"] == "probabilities"
