"""The forms of a kernel in tests: each in turn, tensors of any layout, and nearness to the exact value."""

import importlib.util

import pytest
import torch
from hypothesis import HealthCheck, settings

from synthesis_kernels.backend import kernel_form
from synthesis_kernels.native import library

# The form is the same in every example.
FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["reference", "native", "triton"])
def device(request):
    """The device that a form runs on, with kernels in that form."""
    if request.param == "native" and not library():
        pytest.skip(f"the native kernels can't be compiled here: {library.problem}")
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    with kernel_form(request.param):
        yield torch.device(
            "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"
        )


def assert_near(ours, exact, tolerance):
    """By norm, relative to the exact value."""
    ours, exact = ours.detach().double().cpu(), exact.detach().double().cpu()
    assert ours.shape == exact.shape
    assert (ours - exact).norm() <= tolerance * exact.norm() + 1e-3 * tolerance


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "reversed_axes": lambda x: (
        x.permute(*range(x.ndim)[::-1]).contiguous().permute(*range(x.ndim)[::-1])
    ),
}
