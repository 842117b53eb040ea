"""Rotation, scale and shift in one pass, against torch's own resampling."""

import importlib.util

import pytest
import torch

from distill.data.augment import TURN, make_views
from distill.options import ViewOptions
from inversion.bench.limits import Traffic
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.native import library
from synthesis_kernels.turn import TurnPlan, turn, turn_reference
from synthesis_kernels.views import ViewPlan, views

SHAPES = [(1, 7, 5), (3, 33, 18), (4, 16, 16), (6, 1, 20), (1, 1, 1)]
PLANS = [
    TurnPlan(rotate=12, scale=0.1, shift=0.1),
    TurnPlan(rotate=180),
    TurnPlan(rotate=90, scale=0.9, shift=1.0),
    TurnPlan(shift=0.3),
]


@pytest.fixture(params=["native", "triton"])
def device(request):
    """The device that a form runs on, with kernels in that form."""
    if request.param == "native" and not library():
        pytest.skip(f"the native kernels can't be compiled here: {library.problem}")
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    on_gpu = request.param == "triton" and torch.cuda.is_available()
    with kernel_form(request.param):
        yield torch.device("cuda" if on_gpu else "cpu")


def batch(shape, count=9):
    """Images, whose they are, and which of their views: an early one, a late one, and again."""
    index = torch.arange(count) % 7
    return torch.rand(count, *shape), index, torch.arange(count) * 2**30 + 3


def defined(images, index, view, plan, seed):
    """What float64 gives."""
    with kernel_form("reference"):
        return turn_reference(images.double(), index, view, plan, seed)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_torchs_resampling(device, shape, plan):
    images, index, view = batch(shape)
    ours = turn(images.to(device), index.to(device), view.to(device), plan, seed=7 * 2**32 - 5)
    exact = defined(images, index, view, plan, 7 * 2**32 - 5)
    assert ours.dtype is torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.cpu().double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["channels first", "strided", "one view for all"])
def test_it_reads_any_layout(device, layout):
    images, index, view = batch((3, 10, 12))
    if layout == "strided":
        images = images[..., ::2]
        index = index.repeat_interleave(2)[::2]
    if layout == "one view for all":
        view = torch.tensor(2**32 - 1)
    ours = turn(images.to(device), index.to(device), view.to(device), PLANS[0], 3)
    exact = defined(images, index, view.expand(9), PLANS[0], 3)
    torch.testing.assert_close(ours.cpu().double(), exact, rtol=0, atol=1e-5)


def test_nothing_is_done_to_an_image_that_may_not_turn(device):
    images, index, view = batch((3, 6, 8))
    ours = turn(images.to(device), index.to(device), view.to(device), TurnPlan(), 0)
    assert torch.equal(ours.cpu(), images)


def test_an_empty_batch_stays_empty(device):
    images, index, view = batch((3, 6, 8), count=0)
    ours = turn(images.to(device), index.to(device), view.to(device), PLANS[0], 0)
    assert ours.shape == (0, 3, 6, 8)


@pytest.mark.parametrize("bytes_", [True, False], ids=["bytes", "floats"])
def test_a_turned_view_is_the_same_in_any_batch(device, bytes_):
    pool = torch.randint(256, (5, 3, 9, 11), dtype=torch.uint8)
    pool = (pool if bytes_ else pool / 255).to(device)
    index = torch.arange(20, device=device) % 5
    view = torch.arange(20, device=device) // 5
    options = ViewOptions(rotate=30, scale=0.2, shift=0.1, flip=True, mixup=0.5)
    together = make_views(pool, index, view, options, 4)
    order = torch.tensor([13, 2, 19, 7, 2], device=device)
    assert torch.equal(make_views(pool, index[order], view[order], options, 4), together[order])
    shown = views(pool, index, view, ViewPlan(flip=True, mixup=0.5), 4)
    exact = defined(shown.cpu(), index.cpu(), view.cpu(), TurnPlan(30, 0.2, 0.1), 4 + TURN)
    torch.testing.assert_close(together.cpu().double(), exact, rtol=0, atol=1e-5)


def test_a_turned_view_can_be_learnt_through():
    """The pool's gradient is its definition's, and a step along it lowers what it promises."""
    pool = torch.rand(3, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 2, 2])
    options = ViewOptions(rotate=40, scale=0.3, shift=0.2)
    make = lambda pool: make_views(pool, index, index, options, 1)  # noqa: E731
    assert torch.autograd.gradcheck(make, pool, fast_mode=True)
    single = pool.detach().float().requires_grad_()
    weights = torch.randn(3, 1, 6, 5)
    (ours,) = torch.autograd.grad((make(single) * weights).sum(), single)
    (exact,) = torch.autograd.grad((make(pool) * weights).sum(), pool)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(make(single), make(pool).float(), rtol=0, atol=1e-5)


def test_half_precision_takes_the_definition():
    images, index, view = batch((3, 6, 8))
    ours = turn(images.bfloat16(), index, view, PLANS[0], 0)
    exact = defined(images.bfloat16(), index, view, PLANS[0], 0)
    assert ours.dtype is torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-2)


@pytest.mark.skipif(not library(), reason="counts the native kernels")
def test_turned_views_take_two_operations():
    pool = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    index = torch.arange(20)
    with Traffic() as traffic:
        make_views(pool, index, index, ViewOptions(), 0)
    assert traffic.operations == 2
