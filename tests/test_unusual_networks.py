"""Teachers as people have them: other types of numbers, heads that never run, one to four channels."""

import numpy as np
import pytest
import torch
from answering import IMAGES, Body, load, make
from conftest import last_json
from torch import nn

from distill import Classifier, ModelSpec, build_classifier, save_classifier
from distill.models.frozen import Frozen, find_batch_norms
from inversion import TeacherOptions, inspect_teacher
from inversion.health import examine
from synthesis_kernels.errors import EchosetError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_cast(dtype):
    network = make().to(dtype)
    teacher = Classifier(network, ModelSpec("mine", channels=1, size=20, classes=4)).eval()
    name = str(dtype).removeprefix("torch.")
    assert f"its {name} weights are cast to float32" in inspect_teacher(teacher).warnings
    torch.testing.assert_close(teacher(IMAGES), load("plain")(IMAGES), rtol=0.1, atol=0.1)


class WithAuxiliary(Body):
    def __init__(self, used: bool = True):
        super().__init__()
        self.used = used
        self.auxiliary = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))
        self.spare = nn.BatchNorm2d(3)

    def forward(self, x):
        if not self.used:
            return self.head(self.features[0](x).mean((2, 3)))
        answer = super().forward(x)
        return (answer, self.auxiliary(self.features(x))) if self.training else answer


def test_layers_that_never_run_are_left_out():
    teacher = Classifier(WithAuxiliary(), ModelSpec("mine", channels=1, size=20, classes=4))
    for _ in range(2):
        found = inspect_teacher(teacher.eval())
        assert found.layers == {"features.1": 8}
        assert any("left out: auxiliary.1, spare" in line for line in found.warnings)
    assert not any("never trained" in line for line in examine(teacher).warnings)
    _, moments = Frozen(teacher).with_moments(IMAGES)
    assert moments.shape == (2, 8)
    assert Frozen(teacher).target().distance(moments).isfinite()


def test_one_layer_must_run():
    teacher = Classifier(WithAuxiliary(False), ModelSpec("mine", channels=1, size=20, classes=4))
    with pytest.raises(EchosetError, match="none of the teacher's BatchNorm layers runs"):
        inspect_teacher(teacher.eval())


@pytest.mark.parametrize(("channels", "size"), [(2, 8), (4, 20)])
def test_networks_of_other_channels_are_served(run, tmp_path, channels, size):
    spec = ModelSpec("convnet-4", channels=channels, size=size, classes=2, mean=(0.5,), std=(0.3,))
    model = build_classifier(spec, 3)
    for layer in find_batch_norms(model.network).values():
        layer.running_mean.uniform_(-0.1, 0.1)
    save_classifier(model.eval(), tmp_path / "t.safetensors")
    with torch.no_grad():
        images = torch.rand(64, channels, size, size) * torch.rand(64, channels, 1, 1)
        model.network.head.bias -= model(images).median(0).values  # both classes are decided
    save_classifier(model, tmp_path / "t.safetensors")
    np.savez(tmp_path / "i.npz", images=(images * 255).byte().permute(0, 2, 3, 1).numpy())
    teacher = f"--teacher={tmp_path}/t.safetensors"
    collected = [f"--source={tmp_path}/i.npz", "--images=8", f"--out={tmp_path}/set"]
    run("collect", teacher, *collected, "--quiet")
    run("export", tmp_path / "set", f"--out={tmp_path}/pictures", "--quiet")
    short = ["--student=convnet-4", "--distillation.steps=2", "--quiet"]
    run("distill", teacher, f"--set={tmp_path}/pictures", f"--out={tmp_path}/student", *short)
    data = [f"--data={tmp_path}/pictures", "--quiet", "--json"]
    told = last_json(run("evaluate", f"--model={tmp_path}/t.safetensors", *data))
    assert told["accuracy"] == 1  # the pictures hold every channel
    run("report", f"--run={tmp_path}/set", f"--out={tmp_path}/r.html", "--quiet")


def test_channels_have_a_range():
    with pytest.raises(EchosetError, match="channels must be 1 to 4, got 5"):
        TeacherOptions(channels=5)
