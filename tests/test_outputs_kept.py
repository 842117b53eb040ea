"""What was found out of a network's answers, kept with it and with what was made by it."""

import json

import numpy as np
import pytest
import torch
from answering import IMAGES, load
from conftest import TINY_FLAGS, last_json
from safetensors import safe_open
from torch import nn

from distill import (
    ModelSpec,
    build_classifier,
    load_classifier,
    save_classifier,
)
from distill.models.contract import check_contract
from distill.runtime import Runtime
from distill.sets.transfer_set import TransferSet
from distill.views import to_input
from inversion import CollectOptions, TeacherOptions, collect, load_teacher
from synthesis_kernels.errors import EchosetError


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
    again = load_teacher(TeacherOptions("answering.make", str(path), {"form": "nested"}))
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
    return ["--teacher=answering.make", *(f"--teacher.{k}={v}" for k, v in shape.items())]


def softmax_copy():
    """The bundled teacher with a softmax behind it."""
    return nn.Sequential(load_teacher().network, nn.Softmax(1))


SOFTMAX_COPY = [
    "--teacher=test_outputs_kept.softmax_copy",
    "--teacher.channels=1",
    "--teacher.size=28",
]


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
