"""Networks in files that torch wrote, exported programs and TorchScript, are teachers."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill import Classifier, ModelSpec
from distill.models.archives import check_script
from distill.models.frozen import Frozen, find_batch_norms
from distill.models.kinds import layers
from distill.models.kinds.torchscript import Script
from distill.taps import find_stages
from distill.torchvision_shim import torchvision
from inversion import TeacherOptions, inspect_teacher, load_teacher
from synthesis_kernels.errors import EchosetError

pytestmark = [
    pytest.mark.slow,  # torch.export takes seconds to begin
    *[pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future")],
]
SHAPE = {"channels": 1, "size": 12, "classes": 4}


class Net(nn.Module):
    """What a network may do: branches by shape, sums, a layer in place, a convolution that names
    its sides.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.answer(images)

    def answer(self, images):
        x = self.stem(images)
        x = F.relu(self.norm(self.conv(x)) + x)
        x = F.max_pool2d(self.same(x), 2)
        if x.size(2) > 1:
            x = F.adaptive_avg_pool2d(x, 1)
        return self.head(self.drop(x.view(x.size(0), -1)))


class Picky(Net):
    """Does something else for bright images."""

    def forward(self, images):
        if bool(images.mean() > 0.25):
            images = images * 0.5
        return self.answer(images)


def trained(network):
    """A network as if trained."""
    torch.manual_seed(0)
    for layer in find_batch_norms(network).values():
        layer.running_mean.uniform_(-0.2, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
    return network.eval()


def export(network, path, batch=2, dynamic=True):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(network, (torch.rand(batch, 1, 12, 12),), dynamic_shapes=shapes)
    torch.export.save(program, path)


def export_fixed(network, path):
    """As whoever exports for the first time does it: for one image."""
    export(network, path, batch=1, dynamic=False)


def export_lowered(network, path):
    """With fewer, smaller operators."""
    program = torch.export.export(network, (torch.rand(2, 1, 12, 12),))
    torch.export.save(program.run_decompositions(), path)


def script(network, path):
    torch.jit.script(network).save(path)


def trace(network, path):
    torch.jit.trace(network, torch.rand(1, 1, 12, 12)).save(path)


WAYS = [
    (export, "net.pt2"),
    (export_fixed, "net.pt2"),
    (export_lowered, "net.pt2"),
    (script, "net.pt"),
    (trace, "net.torchscript"),
]


@pytest.mark.parametrize(("save", "name"), WAYS)
def test_a_file_is_a_teacher_as_its_network_is(tmp_path, save, name):
    """The same answers, and the same moments at the same layers: a set comes out the same."""
    network = trained(nn.Sequential(Flat(), Net()) if save is export_lowered else Net())
    save(network, str(tmp_path / name))
    teacher = load_teacher(TeacherOptions(str(tmp_path / name), **SHAPE))
    original = Classifier(network, ModelSpec("net", **SHAPE)).eval()
    images = torch.rand(5, 1, 12, 12)
    torch.testing.assert_close(teacher(images), original(images))
    assert find_batch_norms(teacher.network).keys() == find_batch_norms(network).keys()
    ours = Frozen(teacher).with_moments(images)[1]
    torch.testing.assert_close(ours, Frozen(original).with_moments(images)[1])
    assert list(inspect_teacher(teacher).layers.values()) == [8, 8]
    if save is not export_lowered:
        assert teacher.weight_hash() == original.weight_hash()
        assert find_stages(teacher).head == "head"


class Computed(Net):
    """Computes a bias, or a BatchNorm's weight, on the way."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def forward(self, images):
        three = 3.0 if self.which == "convolution" else 1.0
        x = F.conv2d(images, self.stem[0].weight, self.stem[0].bias * three, padding=1)
        norm = self.norm
        weight = 1 + norm.weight if self.which == "norm" else norm.weight
        x = F.batch_norm(x, norm.running_mean, norm.running_var, weight, norm.bias)
        bias = self.head.bias * 3 if self.which == "linear" else self.head.bias
        return F.linear(x.relu().mean((2, 3)), self.head.weight, bias)


@pytest.mark.parametrize("save", [export, trace])
@pytest.mark.parametrize("which", ["convolution", "norm", "linear"])
def test_what_is_computed_on_the_way_is_not_left_out(tmp_path, save, which):
    network = trained(Computed(which))
    path = str(tmp_path / ("net.pt2" if save is export else "net.pt"))
    save(network, path)
    teacher = load_teacher(TeacherOptions(path, **SHAPE))
    images = torch.rand(5, 1, 12, 12)
    torch.testing.assert_close(teacher(images), network(images))


def test_layers_that_answer_otherwise_than_their_program_are_refused(tmp_path, monkeypatch):
    export(trained(Net()), tmp_path / "net.pt2")
    monkeypatch.setitem(layers.PLAIN, torch.ops.aten.relu.default, torch.sigmoid)
    with pytest.raises(EchosetError, match="answer otherwise than the program"):
        load_teacher(TeacherOptions(str(tmp_path / "net.pt2")))


class Mixed(Net):
    """Lays all images behind each other for a while, as attention does."""

    def forward(self, images):
        x = F.adaptive_avg_pool2d(self.stem(images), 1)
        return self.head(x.reshape(-1).relu().reshape(-1, 8))


def test_sizes_that_are_products_are_read(tmp_path):
    network = trained(Mixed())
    export(network, tmp_path / "net.pt2")
    images = torch.rand(5, 1, 12, 12)
    teacher = load_teacher(TeacherOptions(str(tmp_path / "net.pt2")))
    torch.testing.assert_close(teacher(images), network(images))


def test_a_script_may_hold_what_is_in_a_module_called_ops(tmp_path):
    block = torchvision.ops.Conv2dNormActivation(1, 8)
    script(trained(nn.Sequential(block, Net().drop)), str(tmp_path / "net.pt"))
    check_script(tmp_path / "net.pt")


class Flat(nn.Module):
    """Nothing."""

    def forward(self, images):
        return images


def test_an_exported_program_tells_what_it_takes(tmp_path):
    export(trained(Net()), tmp_path / "net.pt2")
    spec = load_teacher(TeacherOptions(str(tmp_path / "net.pt2"))).spec
    assert (spec.channels, spec.size, spec.classes) == (1, 12, 4)


@pytest.mark.parametrize("command", ["inspect", "collect"])
def test_a_file_works_on_the_command_line(tmp_path, run, command):
    export(trained(Net()), tmp_path / "net.pt2")
    arguments = [f"--teacher={tmp_path / 'net.pt2'}", "--json"]
    if command == "collect":
        arguments += ["--images=8", f"--out={tmp_path / 'set'}", "--source", "noise"]
    done = run(command, *arguments, status=0 if command == "inspect" else 1)
    if command == "inspect":
        assert json.loads(done.stdout.splitlines()[-1])["layers"] == {"stem.1": 8, "norm": 8}
    else:  # a network that was never trained gives noise few classes
        assert "is written but" in done.stderr


def test_a_script_that_looks_at_images_answers_all_the_same(tmp_path, capsys):
    """Its layers can't be reached, which is said, but a set can be collected."""
    network = trained(Picky())
    script(network, str(tmp_path / "net.pt"))
    teacher = load_teacher(TeacherOptions(str(tmp_path / "net.pt"), **SHAPE))
    assert "no layer of this TorchScript can be reached" in capsys.readouterr().err
    assert isinstance(teacher.network, Script) and not find_batch_norms(teacher.network)
    for brightness in (0.1, 1.0):
        images = torch.rand(3, 1, 12, 12) * brightness
        torch.testing.assert_close(teacher(images), network(images))
        torch.testing.assert_close(Frozen(teacher)(images), network(images))
        torch.testing.assert_close(
            copy.deepcopy(teacher).double()(images.double()).float(), network(images)
        )
        teacher.float()
    assert inspect_teacher(teacher, needs_batch_norm=False).parameters > 0


def test_an_exported_program_for_grey_images_gets_the_preset_for_these(tmp_path, run):
    export(trained(Net()), tmp_path / "net.pt2")
    flags = [
        f"--teacher={tmp_path / 'net.pt2'}",
        f"--out={tmp_path / 'set'}",
        "--synthesis.calls=1",
    ]
    said = run("synthesize", *flags, "--synthesis.batch=4", "--images=400", status=1).stderr
    assert "preset digits: the teacher takes grey images" in said
