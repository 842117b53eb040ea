"""The recipe for networks with attention: heads that are heard, compared, and made alike."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stopping import stopped
from torch import nn

import distill.torchvision_shim  # before timm and transformers, which import it
from distill import ModelSpec, build_classifier, save_classifier
from distill.models import Classifier
from distill.models.frozen import Frozen
from distill.runtime import Runtime
from inversion import SynthesisOptions, plan, synthesize
from inversion.options import AdversaryOptions, GeneratorOptions, ObjectiveOptions
from inversion.parts.attention_heads import head_difference, ssim_of_pairs, with_heads
from inversion.recipes.attention import Attention, total_variation
from synthesis_kernels.errors import EchosetError

RUN = Runtime(device="cpu", precision="float32", quiet=True)
SMALL = SynthesisOptions(
    recipe="attention",
    images=20,
    batch=20,
    calls=3,
    generator=GeneratorOptions(inner_steps=2, width=8),
    adversary=AdversaryOptions(steps=1),
)


def toy_teacher(name="vit-64x1", size=16):
    """A transformer of 16 tokens; its weights are as they were drawn."""
    spec = ModelSpec(name, channels=1, size=size, classes=2, mean=(0.5,), std=(0.3,))
    return build_classifier(spec).eval().requires_grad_(False)


def ssim(one, other):
    """Structural similarity as Wang et al. (2004) define it, window by window."""
    side = min(11, *one.shape)
    places = np.arange(side) - (side - 1) / 2
    window = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(one.shape[0] - side + 1):
        for column in range(one.shape[1] - side + 1):
            x = one[row : row + side, column : column + side]
            y = other[row : row + side, column : column + side]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            both = (window * (x - mx) * (y - my)).sum()
            light = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
            values.append(light * (2 * both + 9e-4) / (vx + vy + 9e-4))
    return np.mean(values)


@pytest.mark.parametrize("shape", [(14, 13), (5, 5)])
def test_the_likeness_of_heads_is_ssim(shape):
    maps = torch.rand(2, 3, *shape, dtype=torch.float64)
    one, other = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    ours = ssim_of_pairs(maps, one, other)
    for image in range(2):
        for pair, (a, b) in enumerate(zip(one, other, strict=True)):
            expected = ssim(maps[image, a].numpy(), maps[image, b].numpy())
            assert ours[image, pair].item() == pytest.approx(expected, rel=1e-9)


def test_the_difference_of_heads_is_the_mean_over_pairs_images_and_layers():
    layers = [torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 2, 4, 5).double()]
    means = []
    for layer in layers:
        low, high = layer.amin((2, 3), True), layer.amax((2, 3), True)
        stretched = ((layer - low) / (high - low)).numpy()
        losses = []
        for heads in stretched:
            for a in range(len(heads)):
                losses += [1 - ssim(heads[a], heads[b]) ** 2 for b in range(a)]
        means.append(np.mean(losses))
    assert head_difference(layers).item() == pytest.approx(np.mean(means), rel=1e-9)


def test_gradients_of_the_difference_of_heads():
    maps = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: head_difference([x]), maps)


def test_heads_alike_differ_in_nothing_and_constant_maps_do_no_harm():
    alike = torch.randn(2, 1, 6, 6).expand(2, 3, 6, 6) * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    assert head_difference([alike]).item() == pytest.approx(0, abs=1e-5)
    constant = torch.ones(2, 2, 6, 6, requires_grad=True)
    head_difference([constant]).backward()
    assert torch.isfinite(constant.grad).all()


def test_total_variation():
    images = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    assert total_variation(images).item() == pytest.approx((0.5 + 0.5) / 2 + (1 + 0) / 2)


def test_what_is_heard_is_queries_times_keys():
    teacher = toy_teacher()
    told = {}
    layer = teacher.network.blocks[0].attention
    for name in ("query", "key"):
        hook = lambda module, inputs, output, name=name: told.update({name: output})  # noqa: E731
        getattr(layer, name).register_forward_hook(hook)
    images = torch.rand(3, 1, 16, 16)
    logits, (maps,) = with_heads(teacher, images)
    query, key = (told[name].view(3, 16, 2, 32) for name in ("query", "key"))
    torch.testing.assert_close(maps, torch.einsum("bnhd,bmhd->bhnm", query, key))
    assert torch.equal(logits, teacher(images))


def zoo():
    return build_classifier(ModelSpec("vit-64x2", channels=3, size=32)).eval()


def frozen_zoo():
    return Frozen(zoo(), torch.bfloat16)


def exported():
    return torch.export.export(zoo(), (torch.rand(2, 3, 32, 32),)).module()


def of_timm(fused=True):
    timm = pytest.importorskip("timm", reason="needs timm, the extra timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return network.eval()


def of_timm_written_out():
    return of_timm(fused=False)


def of_torchvision():
    return distill.torchvision_shim.torchvision.models.VisionTransformer(32, 8, 2, 2, 64, 64).eval()


def windows_of_torchvision():
    models = distill.torchvision_shim.torchvision.models
    return models.SwinTransformer([4, 4], 32, [1, 1], [2, 4], [4, 4], num_classes=5).eval()


def of_hugging_face(attention="sdpa"):
    transformers = pytest.importorskip("transformers", reason="needs transformers, the extra hf")
    shape = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    parts = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ViTConfig(**shape, **parts)
    network = transformers.ViTForImageClassification._from_config(
        config, attn_implementation=attention
    ).eval()
    return lambda images: network(images).logits


def of_hugging_face_written_out():
    return of_hugging_face("eager")


class Plain(nn.Module):
    """Torch's own attention as many call it: it gives its weights, too."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        answer, _ = self.attention(tokens, tokens, tokens)
        return answer.mean(1)


def of_torch():
    return Plain().eval()


@pytest.mark.parametrize(
    "make",
    [
        zoo,
        frozen_zoo,
        exported,
        of_timm,
        of_timm_written_out,
        of_torchvision,
        windows_of_torchvision,
        of_hugging_face,
        of_hugging_face_written_out,
        of_torch,
    ],
)
def test_the_heads_of_every_library_are_heard(make):
    network = make()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    before = (F.scaled_dot_product_attention, F.softmax)
    logits, maps = with_heads(network, images)
    assert (F.scaled_dot_product_attention, F.softmax) == before
    torch.testing.assert_close(logits, network(images), rtol=1e-4, atol=1e-4)
    assert maps
    assert all(each.shape[1] > 1 and each.dtype is torch.float32 for each in maps)
    (gradient,) = torch.autograd.grad(head_difference(maps), images)
    assert gradient.abs().sum() > 0


def test_a_written_out_attention_is_heard_as_the_fused_one_is():
    """But for the scale of the scores, which a map loses."""
    torch.manual_seed(0)
    fused = of_timm()
    torch.manual_seed(0)
    written = of_timm_written_out()
    images = torch.rand(2, 3, 32, 32)
    values = [head_difference(with_heads(network, images)[1]) for network in (fused, written)]
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def test_the_recipe_brings_heads_together(tmp_path):
    teacher = toy_teacher()
    goal = ObjectiveOptions(heads=100.0, classes=0.0, variation=0.0)
    options = SynthesisOptions(**{**vars(SMALL), "objective": goal})
    recipe = Attention(teacher, plan(options, 2)[0], options, RUN.resolve())
    differences = [recipe._generator_step()[1]["heads"].item() for _ in range(30)]
    assert np.mean(differences[-3:]) < 0.9 * np.mean(differences[:3])


def test_a_toy_transformer_gives_a_set(tmp_path):
    teacher = toy_teacher()
    made = synthesize(teacher, SMALL, tmp_path / "set", RUN)
    assert made.manifest["method"] == "attention"
    assert torch.equal(teacher(made.images.float() / 255).argmax(1), made.labels)
    log = (tmp_path / "set").glob("**/*.jsonl")
    assert any("heads" in path.read_text() for path in log)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path):
    teacher = toy_teacher()
    whole = synthesize(teacher, SMALL, tmp_path / "whole", RUN)
    with stopped():
        synthesize(teacher, SMALL, tmp_path / "stopped", RUN)
    again = synthesize(teacher, SMALL, tmp_path / "stopped", RUN)
    for name in ("images", "labels", "logits", "priority", "round"):
        assert torch.equal(getattr(whole, name), getattr(again, name))


@pytest.mark.parametrize("name", ["convnet-gn-4", "vit-32x1"])
def test_a_network_without_heads_to_compare_is_refused(name, run, refused, tmp_path):
    save_classifier(toy_teacher(name), tmp_path / "t.safetensors")
    teacher = f"--teacher={tmp_path / 't.safetensors'}"
    said = refused(
        "synthesize", teacher, "--synthesis.recipe=attention", f"--out={tmp_path / 'set'}"
    )
    assert "no attention layer with two heads or more" in said
    assert "--synthesis.recipe adversarial" in said
    assert not (tmp_path / "set").exists()
    told = run("inspect", teacher).stdout
    assert "not attention" in told and "nothing in the network tells: mean and std must be" in told


def test_inspect_lists_the_recipe_for_a_transformer(run, tmp_path):
    save_classifier(toy_teacher(), tmp_path / "t.safetensors")
    said = run("inspect", f"--teacher={tmp_path / 't.safetensors'}").stdout
    assert "adversarial, attention" in said


def test_what_the_adversarial_recipe_has_not_attention_has_not_either(tmp_path):
    options = SynthesisOptions(**{**vars(SMALL), "adversary": AdversaryOptions(begins=1)})
    with pytest.raises(EchosetError, match=r"recipe attention has no adversary\.begins"):
        synthesize(toy_teacher(), options, tmp_path / "set", RUN)


def test_a_transformer_learns_from_smaller_images_too():
    teacher = toy_teacher(size=32)
    assert isinstance(teacher, Classifier)
    answer = teacher(torch.rand(2, 1, 16, 16))
    assert answer.shape == (2, 2)
    assert all(map(math.isfinite, answer.flatten().tolist()))
