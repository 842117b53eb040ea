"""Views in every form, against their definition."""

import pytest
import torch
from conftest import needs_native
from forms import LAYOUTS
from torch.autograd import gradcheck

from synthesis_kernels import backend
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.views import ViewPlan, views, views_reference


@needs_native
def test_threads_share_the_native_views():
    pool, index = torch.randint(256, (5, 3, 9, 9), dtype=torch.uint8), torch.arange(11) % 5
    plan, before = ViewPlan(2, True, 3, 0.5, 0.5), torch.get_num_threads()
    exact = views_reference(pool, index, torch.arange(11), plan, 4)
    floats = (pool / 255).requires_grad_()
    gradients = []
    try:
        with kernel_form("native"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                torch.testing.assert_close(views(pool, index, torch.arange(11), plan, 4), exact)
                seen = views(floats, index, torch.arange(11), plan, 4)
                gradients += torch.autograd.grad((seen * exact).sum(), floats)
        assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    finally:
        torch.set_num_threads(before)


PLANS = [
    ViewPlan(),
    ViewPlan(crop=2),
    ViewPlan(flip=True),
    ViewPlan(cutout=3),
    ViewPlan(crop=1, cutout=4),
    ViewPlan(mixup=1.0),
    ViewPlan(crop=2, flip=True, cutout=3, mixup=0.5),
    ViewPlan(crop=9, flip=True, cutout=11),  # both larger than the image
    ViewPlan(cutmix=1.0),
    ViewPlan(crop=2, flip=True, cutout=3, mixup=0.5, cutmix=0.6),
]
FLOATS = {torch.float32: 1.2e-7, torch.float64: 1e-15, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("size", [(3, 6, 9), (1, 9, 6), (4, 17, 16)], ids=str)
def test_views_equal_their_definition(device, plan, size):
    pool = torch.randint(0, 256, (5, *size), dtype=torch.uint8)
    index, view = torch.tensor([0, 4, 4, 2, 1, 3, 0]), torch.tensor([0, 0, 1, 7, 2**31, 5, 6])
    ours = views(pool.to(device), index.to(device), view.to(device), plan, seed=3)
    exact = views_reference(pool, index, view, plan, seed=3)
    assert ours.dtype is torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.cpu(), exact, rtol=0, atol=1.2e-7 if plan.mixup else 0)
    one = torch.tensor(2**32 - 1)
    ours = views(pool.to(device), index.to(device), one.to(device), plan, seed=7 * 2**32 - 5)
    exact = views_reference(pool, index, one.expand(7), plan, seed=7 * 2**32 - 5)
    torch.testing.assert_close(ours.cpu(), exact, rtol=0, atol=1.2e-7 if plan.mixup else 0)


@pytest.mark.parametrize(
    "dtype, layout",
    [
        (torch.float32, "channels_last"),
        (torch.float32, "strided"),
        (torch.float32, "expanded"),
        (torch.float64, "contiguous"),
        (torch.bfloat16, "channels_last"),
    ],
    ids=str,
)
@pytest.mark.parametrize("plan", [ViewPlan(crop=2, flip=True), PLANS[-1]], ids=str)
def test_views_of_a_float_pool_equal_their_definition(device, plan, dtype, layout):
    """Where an image is seen several times, and others never, all that see it add up."""
    pool = LAYOUTS[layout](torch.rand(5, 3, 7, 5, device=device).to(dtype)).requires_grad_()
    index = torch.tensor([3, 0, 3, 2, 3, 0], device=device)
    view = torch.arange(6, device=device)
    weights = torch.randn(6, 3, 7, 5, device=device).to(dtype)
    outs, gradients = [], []
    for function in (views, views, views_reference):
        outs.append(function(pool, index, view, plan, seed=5))
        gradients += torch.autograd.grad((outs[-1] * weights).sum(), pool)
    assert outs[0].dtype is dtype and outs[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(outs[0], outs[1])
    if pool.device.type == "cpu" or backend.asked_form() != "reference":
        assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(outs[0], outs[2], rtol=0, atol=FLOATS[dtype])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=20 * FLOATS[dtype])


def test_views_of_half_precision_take_their_definition(device):
    pool = torch.rand(3, 1, 4, 4, device=device).half()
    index = torch.arange(3, device=device)
    assert torch.equal(
        views(pool, index, index, PLANS[1], 0), views_reference(pool, index, index, PLANS[1], 0)
    )


def test_a_view_is_the_same_in_any_batch_and_order(device):
    pool = torch.randint(0, 256, (9, 3, 6, 5), dtype=torch.uint8, device=device)
    plan, index, view = (
        PLANS[6],
        torch.arange(40, device=device) % 9,
        torch.arange(40, device=device) // 9,
    )
    everything = views(pool, index, view, plan, seed=1)
    order = torch.randperm(40).to(device)[:11]
    assert torch.equal(views(pool, index[order], view[order], plan, seed=1), everything[order])
    assert not torch.equal(views(pool, index, view, plan, seed=2), everything)


def test_views_of_a_strided_pool(device):
    pool = torch.randint(0, 256, (4, 3, 6, 10), dtype=torch.uint8, device=device)[..., ::2]
    index = torch.arange(8, device=device)[::2] // 2
    ours = views(pool, index, index, PLANS[6], seed=0)
    torch.testing.assert_close(
        ours, views(pool.contiguous(), index.clone(), index, PLANS[6], seed=0), rtol=0, atol=0
    )


def test_views_happen_as_often_as_planned():
    pool = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    pool[0, 0, 1, 2] = 255  # right of the middle
    count = 4000
    index, view = torch.zeros(count, dtype=torch.int64), torch.arange(count)
    flipped = views(pool, index, view, ViewPlan(flip=True), seed=0)[:, 0, 1, 0]
    assert abs(flipped.mean() - 0.5) < 0.03
    pool[0, 0, 1] = torch.tensor([0, 255, 0])
    shifted = views(pool, index, view, ViewPlan(crop=1), seed=0).mean(0)[0]
    assert (shifted - 1 / 9).abs().max() < 0.02  # every shift alike
    pool.fill_(255)
    cut = 1 - views(pool, index, view, ViewPlan(cutout=1), seed=0).mean(0)[0]
    assert (cut - 1 / 9).abs().max() < 0.02
    pools = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    mixed = views(pools, index, view, ViewPlan(mixup=0.4), seed=0)[:, 0, 0, 0]
    assert abs((mixed > 0).float().mean() - 0.2) < 0.03  # 0.4, and every second partner is as black


@pytest.mark.parametrize(
    "plan",
    [ViewPlan(crop=1, flip=True, cutout=2), ViewPlan(mixup=1.0), PLANS[6], PLANS[-2], PLANS[-1]],
    ids=str,
)
def test_views_of_a_float_pool_are_differentiable(device, plan):
    index = view = torch.tensor([0, 2, 2], device=device)
    pool = torch.rand(3, 1, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    # Interpreted, a kernel takes a tenth of a second: along a few directions is enough.
    few = backend.asked_form() == "triton"
    assert gradcheck(lambda pool: views(pool, index, view, plan, seed=5), pool, fast_mode=few)
    single = pool.detach().float().requires_grad_()
    outs = [function(single, index, view, plan, seed=5) for function in (views, views_reference)]
    weights = torch.randn(3, 1, 4, 3, device=device)
    ours, exact = (torch.autograd.grad((out * weights).sum(), single)[0] for out in outs)
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1.2e-7)
    torch.testing.assert_close(ours, exact)


def test_views_refuse_a_pool_of_integers():
    with pytest.raises(EchosetError, match="uint8 or float"):
        views(
            torch.zeros(1, 1, 2, 2, dtype=torch.int32),
            torch.zeros(1).long(),
            torch.zeros(1).long(),
            ViewPlan(),
            0,
        )


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32], ids=str)
def test_views_of_no_image_are_nan_where_nobody_waits_to_hear_of_them(kind):
    pytest.importorskip("triton", reason="triton is for Linux on x86_64")
    pool, index = torch.ones(3, 1, 5, 5, dtype=kind), torch.tensor([0, 3, -1, 2])
    pool.requires_grad_(kind.is_floating_point)
    with kernel_form("triton"):
        seen = views(pool, index, torch.arange(4), ViewPlan(2, True, 2, 0.5, 0.5), 1)
    assert seen.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    assert not seen[[0, 3]].isnan().any()
    if pool.requires_grad:
        (gradient,) = torch.autograd.grad(seen[[0, 3]].sum(), pool)
        assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize("form", ["reference", pytest.param("native", marks=needs_native)])
def test_views_of_no_image_are_refused(form):
    pool = torch.zeros(3, 1, 5, 5, dtype=torch.uint8)
    with kernel_form(form), pytest.raises(IndexError):
        views(pool, torch.tensor([0, 3]), torch.arange(2), ViewPlan(0, False, 0, 0.0), 1)
    index = torch.tensor([2, 0], dtype=torch.int32)
    with kernel_form(form):
        assert (
            views(pool + 9, index, torch.arange(2), ViewPlan(0, False, 0, 0.0), 1)
            .mul(255)
            .round()
            .eq(9)
            .all()
        )
