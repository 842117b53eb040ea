"""Images of any height and width: told, checked, generated, drawn, changed, and through every
verb.
"""

import importlib.util

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import STUDENT, TINY_FLAGS, last_json
from hypothesis import given, settings
from PIL import Image

from distill import as_classifier, from_dataset, load_images
from distill.data.augment import make_views
from distill.data.operations import OPERATIONS
from distill.models import ModelSpec, build_classifier, read_spec, save_classifier
from distill.models.contract import check_contract
from distill.models.frozen import find_batch_norms
from distill.options import ViewOptions
from distill.taps import find_stages
from inversion import TeacherOptions, load_teacher
from inversion.parts.generator import Generator
from inversion.sources import DRAWN
from inversion.sources.stream import open_source
from inversion.teacher_file import as_named, read_teacher
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.native import library
from synthesis_kernels.turn import TurnPlan, turn

CONTRACT = {"channels": 1, "classes": 2, "mean": [0.5], "std": [0.25]}


def decided(size, channels=1, model="convnet-4", classes=2):
    """A network that decides for every class, with statistics as of a training."""
    spec = ModelSpec(model, channels=channels, size=size, classes=classes, mean=(0.5,), std=(0.3,))
    network = build_classifier(spec, 3)
    for layer in find_batch_norms(network.network).values():
        layer.running_mean.uniform_(-0.1, 0.1)
    network.eval()
    with torch.no_grad():
        images = torch.rand(64, *spec.shape) * torch.rand(64, channels, 1, 1)
        network.network.head.bias -= network(images).median(0).values
    return network


# Telling a size


@pytest.mark.parametrize("told", ["24x40", "24×40", " 24 X 40 ", (24, 40), [24, 40]], ids=str)
def test_height_stands_first(told):
    assert TeacherOptions(size=told).size == (24, 40)
    spec = ModelSpec("convnet-4", channels=3, size=TeacherOptions(size=told).size)
    assert (spec.height, spec.width, spec.side, spec.shape) == (24, 40, 24, (3, 24, 40))


@pytest.mark.parametrize("told", [32, "32", "32x32", (32, 32)], ids=str)
def test_a_square_is_one_number(told):
    assert TeacherOptions(size=told) == TeacherOptions()
    assert ModelSpec("convnet-4", size=TeacherOptions(size=told).size).size == 32


@pytest.mark.parametrize("told", ["x", "24x", "1x2x3", 1.5, True, None, [24], [24, 40, 3], "-9"])
def test_what_is_no_size_is_refused(told):
    with pytest.raises(EchosetError, match="size must be one number, or HEIGHTxWIDTH"):
        TeacherOptions(size=told)


def test_each_side_has_a_least():
    with pytest.raises(EchosetError, match="size must be at least 8, got 40x7"):
        TeacherOptions(size="40x7")


@pytest.mark.parametrize(
    "told", [[24], [24, 40, 3], [0, 40], [24, 8193], [24, True], [24, 4.0], "24x40", [[24], 40], {}]
)
def test_files_may_not_say_what_is_no_size(told):
    check_contract({**CONTRACT, "size": [24, 40]}, "manifest.json")
    with pytest.raises(EchosetError, match=r"manifest\.json: size must be a whole number.*two of"):
        check_contract({**CONTRACT, "size": told}, "manifest.json")


def test_a_file_keeps_the_size(tmp_path):
    network = decided((24, 40))
    save_classifier(network, tmp_path / "net.safetensors")
    assert read_spec(tmp_path / "net.safetensors") == network.spec
    assert network.contract["size"] == [24, 40] and decided(24).contract["size"] == 24
    with pytest.raises(EchosetError, match=r"its size is \(24, 40\), not \(40, 24\)"):
        load_teacher(TeacherOptions(str(tmp_path / "net.safetensors"), size="40x24"))


@pytest.mark.parametrize("written", ["24x40", "[24, 40]"])
def test_a_file_of_options_tells_a_size(tmp_path, written):
    file = tmp_path / "teacher.yaml"
    file.write_text(f"model: convnet-4\nsize: {written}\n")
    options = read_teacher(file)
    assert options.size == (24, 40) and as_named(options)["size"] == [24, 40]


# Networks that are bound to a size


@pytest.mark.parametrize("name", ["lenet5", "cifar-vgg11", "wrn-10-1", "cifar-mobilenetv2"])
@pytest.mark.parametrize("size", [(16, 52), (52, 17)], ids=str)
def test_the_zoo_takes_any_size(name, size):
    network = build_classifier(ModelSpec(name, size=size, classes=3)).eval()
    network.check_forward()
    assert all(height > 0 and width > 0 for height, width in find_stages(network).sides)


@pytest.mark.parametrize("size", [(16, 52), (52, 17)], ids=str)
def test_a_transformer_has_a_token_for_every_patch(size):
    network = build_classifier(ModelSpec("vit-32x1", size=size, classes=3)).eval()
    network.check_forward()
    assert network.network.places.shape[2:] == tuple(-(-side // 4) for side in size)


class Flat(torch.nn.Module):
    """Takes images of one size."""

    def __init__(self, places):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1)
        self.norm.running_mean.fill_(0.3)
        self.head = torch.nn.Linear(places, 4)

    def forward(self, images):
        return self.head(self.norm(images).flatten(1))


def test_files_of_networks_for_one_size(tmp_path, run):
    network = Flat(12 * 20).eval()
    images = torch.rand(2, 1, 12, 20)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(network, (images,), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.jit.trace(network, images).save(str(tmp_path / "net.pt"))
    said = load_teacher(TeacherOptions(str(tmp_path / "net.pt2")))
    assert said.spec.shape == (1, 12, 20) and said.spec.classes == 4
    shape = {"channels": 1, "size": "12x20", "classes": 4}
    script = load_teacher(TeacherOptions(str(tmp_path / "net.pt"), **shape))
    assert list(find_batch_norms(script.network)) and torch.allclose(script(images), said(images))
    with pytest.raises(EchosetError, match=r"does not take images of shape \(1, 20, 13\)"):
        load_teacher(
            TeacherOptions(str(tmp_path / "net.pt2"), **shape | {"size": "20x13"})
        ).check_forward()
    told = run("inspect", f"--teacher={tmp_path}/net.pt2", "--no-estimate")
    assert "1 × 12 × 20" in told.stdout


def test_a_network_from_python_takes_height_and_width():
    wrapped = as_classifier(Flat(240), channels=1, size=(12, 20), mean=0.5, std=0.25)
    assert wrapped.spec.size == (12, 20) and wrapped.spec.classes == 4


# Images


def test_real_images_are_resized_to_height_and_width(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((30 + number, 50, 3), 40 * number, np.uint8)).save(
            folder / f"{number}.png"
        )
    data = load_images(tmp_path, "train", 1, (24, 40))
    assert data.images.shape == (3, 1, 24, 40) and data.images.flatten(1).unique().numel() == 3
    assert from_dataset([np.zeros((9, 7), np.uint8)], "mine", 1, (8, 12)).images.shape[2:] == (
        8,
        12,
    )


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("size", [(24, 40), (64, 9)], ids=str)
def test_every_source_draws_any_size(name, size):
    block = open_source(name, 3, size).block(0)
    assert block.shape == (512, 3, *size)
    drawn = block.float().flatten(1).std(1)
    assert (drawn > 0).float().mean() > 0.9
    # No side is left bare.
    edges = torch.cat([block[..., -1].flatten(1), block[..., -1, :].flatten(1)], 1)
    assert edges.float().std() > 1


@settings(max_examples=25)
@given(
    st.integers(8, 64),
    st.integers(8, 64),
    st.integers(1, 4),
    st.sampled_from([0, 1]),
    st.sampled_from([0.0, 1.0]),
)
def test_the_generator_makes_any_size(height, width, channels, blocks, smooth):
    generator = Generator(
        channels, (height, width), 2, latent=8, width=2, blocks=blocks, smooth=smooth
    )
    noise = torch.randn(3, 8, requires_grad=True)
    images = generator(noise, *(torch.arange(3) % 2,) * 2)
    assert images.shape == (3, channels, height, width)
    assert images.min() >= 0 and images.max() <= 1
    images.sum().backward()
    assert noise.grad.isfinite().all() and images.std() > 0


def test_two_equal_sides_make_the_square_generator():
    made = []
    for size in (20, (20, 20)):
        torch.manual_seed(0)
        generator = Generator(1, size, 2, latent=8, width=2)
        made.append(generator(torch.ones(2, 8), torch.arange(2), torch.arange(2)))
    assert torch.equal(*made)


# Views


def blob(height, width):
    """A soft disc in the middle: turned in pixels, it stays as it is."""
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    return (-(rows[:, None] ** 2 + columns**2) / 18).exp()


@pytest.mark.parametrize("form", ["reference", "native", "triton"])
@pytest.mark.parametrize("size", [(24, 40), (31, 20), (24, 24)], ids=str)
def test_turning_shears_nothing(form, size):
    if form == "native" and not library():
        pytest.skip(f"the native kernels can't be compiled here: {library.problem}")
    if form == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    device = "cuda" if form == "triton" and torch.cuda.is_available() else "cpu"
    images = blob(*size).expand(6, 2, *size).contiguous().to(device)
    index = torch.arange(6, device=device)
    with kernel_form(form):
        turned = turn(images, index, index, TurnPlan(rotate=180), seed=1)
    torch.testing.assert_close(turned, images, rtol=0, atol=0.03)


def test_a_shear_is_one_of_pixels():
    """A shear of the longer side moves a pixel as far as one of the shorter side does."""
    wide = torch.zeros(1, 1, 9, 33)
    wide[..., 16] = 1
    amount = torch.tensor([0.5])
    for axis, images in (("shear-x", wide), ("shear-y", wide.transpose(2, 3).contiguous())):
        sheared = OPERATIONS[axis](images, amount)
        line = sheared if axis == "shear-x" else sheared.transpose(2, 3)
        places = line[0, 0].argmax(1)
        moved = (places[-1] - places[0]).abs().item()
        assert moved == round(0.6 * 0.5 * 8)


def test_a_shift_is_a_part_of_the_shorter_side():
    pool = torch.full((4, 1, 8, 64), 255, dtype=torch.uint8)
    index = torch.arange(64) % 4
    options = ViewOptions(rotate=0, scale=0, shift=0.25, cutout=0.25, flip=True)
    seen = make_views(pool, index, torch.arange(64), options, 0)
    black = (seen == 0).flatten(1).float().mean(1)
    assert black.max() <= 1 - (6 / 8) * (62 / 64) + 4 / 512
    turned = make_views(pool, index, torch.arange(64), ViewOptions(rotate=20, shift=0.25), 0)
    assert turned.shape == seen.shape and turned[:, :, 4, 32].min() > 0.5


def test_turned_views_of_any_size_can_be_learnt_through():
    pool = torch.rand(3, 1, 5, 9, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 2, 2])
    options = ViewOptions(rotate=40, scale=0.3, shift=0.2)
    make = lambda pool: make_views(pool, index, index, options, 1)  # noqa: E731
    assert torch.autograd.gradcheck(make, pool, fast_mode=True)


# Every verb


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_shape_go_through_every_verb(run, tmp_path, channels):
    save_classifier(decided((24, 40), channels), tmp_path / "t.safetensors")
    teacher = f"--teacher={tmp_path}/t.safetensors"
    told = last_json(run("inspect", teacher, "--json", "--no-estimate"))
    assert told["spec"]["size"] == [24, 40]
    filled = [f"--out={tmp_path}/set", "--quiet"]
    run("synthesize", teacher, *TINY_FLAGS, *filled)
    run("verify", f"--set={tmp_path}/set", teacher, "--quiet")
    short = ["--student=convnet-4", "--distillation.steps=4", "--distillation.views_per_image=2"]
    run("distill", f"--set={tmp_path}/set", f"--out={tmp_path}/lesson", *short, "--quiet")
    student = tmp_path / "lesson" / STUDENT
    assert read_spec(student).shape == (channels, 24, 40)
    run("export", tmp_path / "set", f"--out={tmp_path}/pictures", "--quiet")
    data = f"--data={tmp_path}/pictures"
    told = last_json(run("evaluate", f"--model={student}", data, "--quiet", "--json"))
    assert 0 <= told["accuracy"] <= 1
    run("score", tmp_path / "set", f"--out={tmp_path}/score.html", "--quiet")
    run("report", f"--run={tmp_path}/set", f"--out={tmp_path}/report.html", "--quiet")
    collection = ["collect", "shaders", "strokes", teacher, "--images=8", "--collection.draws=40"]
    run(*collection, f"--out={tmp_path}/collected", "--quiet")
    run("verify", f"--set={tmp_path}/collected", "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, (8, 32), 512, (512, 64)], ids=str)
def test_sets_are_made_from_8_to_512_pixels(run, tmp_path, size):
    save_classifier(decided(size), tmp_path / "t.safetensors")
    few = ["--images=4", "--synthesis.batch=4", "--synthesis.calls=2", "--synthesis.patience=9"]
    small = ["--synthesis.generator.width=2", "--synthesis.generator.inner_steps=1"]
    lazy = ["--synthesis.adversary.steps=1", "--synthesis.adversary.batch=4", "--quiet"]
    filled = [f"--out={tmp_path}/set"]
    run("synthesize", f"--teacher={tmp_path}/t.safetensors", *few, *small, *lazy, *filled)
    run("verify", f"--set={tmp_path}/set", "--quiet")
