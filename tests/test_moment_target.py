"""The distance of a batch's moments from the running statistics."""

import pytest
import torch
from forms import assert_near

from synthesis_kernels.bn_match import bn_match
from synthesis_kernels.moment_target import MomentTarget, fold_batch_norm, moment_distance


@pytest.mark.parametrize("affine", [True, False])
def test_folding_gives_what_batch_norm_gives(device, affine):
    layer = torch.nn.BatchNorm2d(6, affine=affine).to(device).eval()
    for tensor in (layer.running_mean, layer.running_var, *layer.parameters()):
        tensor.data.uniform_(0.5, 2)
    x = torch.randn(3, 6, 4, 4, device=device)
    scale, shift = fold_batch_norm(
        layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps
    )
    assert_near(bn_match(x, scale, shift)[0], layer(x), 1e-6)


def test_moment_distance_is_zero_only_at_the_running_statistics():
    mean, variance = torch.randn(4), torch.rand(4)
    assert moment_distance(mean, variance, mean, variance) == 0
    assert torch.isclose(
        moment_distance(mean + 1, variance, mean, variance), torch.tensor(2.0)
    )  # ‖(1,1,1,1)‖₂


def test_relative_moment_distance_ignores_the_scale_of_channels():
    mean, variance, running_mean, running_variance = torch.rand(4, 5, dtype=torch.float64) + 0.5
    scale = torch.tensor([0.2, 1.0, 3.0, 4.0, 2.0])
    plain = moment_distance(mean, variance, running_mean, running_variance, relative=True)
    scaled = (mean * scale, variance * scale**2, running_mean * scale, running_variance * scale**2)
    torch.testing.assert_close(moment_distance(*scaled, relative=True), plain)
    never_varied = torch.tensor([1.0, 1.0, 0.0])
    assert torch.isfinite(
        moment_distance(torch.rand(3), torch.rand(3), torch.rand(3), never_varied, relative=True)
    )


@pytest.mark.parametrize("relative", [False, True])
def test_moment_target_takes_all_layers_together(relative):
    means, variances = [torch.randn(4), torch.randn(7)], [torch.rand(4), torch.rand(7)]
    moments = torch.stack([torch.randn(11), torch.rand(11)]).requires_grad_()
    pieces = zip(*(row.split([4, 7]) for row in moments), means, variances, strict=True)
    expected = sum(moment_distance(*piece, relative) for piece in pieces)
    expected = (
        expected / 2 if relative else expected
    )  # the published sum, or the mean in relative units
    target = MomentTarget(means, variances, relative)
    distance = target.distance(moments)
    torch.testing.assert_close(distance, expected)
    slopes = [torch.autograd.grad(3 * value, moments)[0] for value in (distance, expected)]
    torch.testing.assert_close(*slopes)
    groups = torch.stack([moments, target.moments])
    torch.testing.assert_close(target.distance(groups), torch.stack([expected, torch.tensor(0.0)]))
    assert (torch.autograd.grad(target.distance(groups).sum(), groups)[0][1] == 0).all()
