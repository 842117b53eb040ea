"""A student as a program for other runtimes."""

import sys

import pytest
import torch
from conftest import last_json
from torch import nn

from distill import ModelSpec, as_classifier, build_classifier, save_classifier
from distill.models import programs
from distill.models.programs import save_program
from synthesis_kernels.errors import EchosetError


def save_student(path, model="convnet-4"):
    spec = ModelSpec(model, channels=1, size=16, classes=3, mean=(0.4,), std=(0.2,))
    student = build_classifier(spec, seed=1).eval()
    save_classifier(student, path)
    return student


@pytest.mark.slow
@pytest.mark.parametrize("model", ["convnet-4", "wrn-10-1", "lenet5", "cifar-mobilenetv2"])
def test_a_program_takes_pixels_in_any_number_and_answers_as_the_student(run, tmp_path, model):
    student = save_student(tmp_path / "s.safetensors", model)
    out = tmp_path / "s.pt2"
    command = ["export-student", f"--student={tmp_path / 's.safetensors'}", f"--out={out}"]
    document = last_json(run(*command, "--json", "--quiet"))
    assert document["input"] == [1, 16, 16] and document["output"] == [3]
    assert document["gap"] <= 1e-4 and document["bytes"] == out.stat().st_size
    program = torch.export.load(str(out)).module()
    for count in (1, 7):
        images = torch.rand(count, 1, 16, 16)
        torch.testing.assert_close(program(images), student(images), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["convnet-4", "wrn-10-1"])
def test_an_onnx_file_answers_as_the_student(run, tmp_path, model):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    student = save_student(tmp_path / "s.safetensors", model)
    out = tmp_path / "s.onnx"
    command = ["export-student", f"--student={tmp_path / 's.safetensors'}", f"--out={out}"]
    assert "from the network's under onnxruntime" in run(*command).stdout
    assert [path.name for path in tmp_path.iterdir() if "onnx" in path.name] == ["s.onnx"]
    session = runtime.InferenceSession(str(out))
    for count in (1, 7):
        images = torch.rand(count, 1, 16, 16)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        expected = student(images).detach()
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_program_names_no_folder_of_the_machine(tmp_path):
    student = save_student(tmp_path / "s.safetensors")
    save_program(student, tmp_path / "s.pt2")
    assert str(torch.__path__[0]).encode() not in (tmp_path / "s.pt2").read_bytes()


def test_a_missing_package_is_named_with_its_remedy(refused, tmp_path, monkeypatch):
    save_student(tmp_path / "s.safetensors")
    monkeypatch.setitem(sys.modules, "onnx", None)
    command = ["export-student", f"--student={tmp_path / 's.safetensors'}"]
    said = refused(*command, f"--out={tmp_path / 's.onnx'}")
    assert "pip install 'echoset[onnx]'" in said and ".pt2" in said
    assert not list(tmp_path.glob("*.onnx*"))


def test_another_ending_and_a_missing_student_are_refused(refused, tmp_path):
    said = refused("export-student", "--student=mnist", f"--out={tmp_path / 's.tflite'}")
    assert "should end in .onnx or .pt2" in said
    said = refused("export-student", f"--student={tmp_path / 'none.safetensors'}")
    assert "no model file at" in said


def test_a_program_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    student = save_student(tmp_path / "s.safetensors")
    form = programs.FORMS[".pt2"]

    def open_wrong(path):
        return "a runtime", lambda images: student(images) + 1

    changed = form._replace(open=open_wrong, write=lambda network, path: path.write_bytes(b"p"))
    monkeypatch.setitem(programs.FORMS, ".pt2", changed)
    (tmp_path / "s.pt2").write_bytes(b"before")
    with torch.no_grad(), pytest.raises(EchosetError, match="it was not kept"):
        save_program(student, tmp_path / "s.pt2")
    assert (tmp_path / "s.pt2").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


class Asks(nn.Module):
    """A network whose way depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 3)

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return logits if images.mean() > 0.4 else -logits


@pytest.mark.slow
def test_a_network_that_cannot_be_traced_is_named(tmp_path):
    network = as_classifier(Asks(), channels=1, size=16, classes=3, mean=(0,), std=(1,))
    with pytest.raises(EchosetError, match=r"Asks can't be written as \.pt2"):
        save_program(network, tmp_path / "s.pt2")
    assert not list(tmp_path.iterdir())
