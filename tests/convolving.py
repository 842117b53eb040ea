"""Kernels of convolutions against their definitions in float64."""

import contextlib

import pytest
import torch
from hypothesis import strategies as some

from synthesis_kernels import native

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
"""Relative errors: of float32 with Winograd's transforms, and of the eight bits of bfloat16."""
PRECISIONS = [
    pytest.param(
        precision,
        marks=pytest.mark.skipif(
            not native.has(f"conv3x3_{name}"),
            reason=f"needs a C++ compiler and a processor with {needs}",
        ),
        id=name,
    )
    for precision, name, needs in (
        (torch.float32, "float32", "AVX2"),
        (torch.bfloat16, "bfloat16", "AVX-512 bfloat16"),
    )
]
needs_avx2 = pytest.mark.skipif(
    not native.has("conv3x3_float32"), reason="needs a processor with AVX2 and a C++ compiler"
)
needs_avx512 = pytest.mark.skipif(
    not native.has("conv3x3_bfloat16"),
    reason="needs a processor with AVX-512 bfloat16 and a C++ compiler",
)


def relative(found, expected):
    found = found.detach().double()
    expected = expected.detach().double()
    return ((found - expected).norm() / expected.norm()).item()


def drawn(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@contextlib.contextmanager
def hearing():
    """Names of native kernels, as they run."""
    names = []
    listen = lambda kernel, name, arguments: names.append(name)  # noqa: E731
    native.listeners.append(listen)
    try:
        yield names
    finally:
        native.listeners.remove(listen)


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors(x, outputs, bias=True, side=3):
    """What a convolution of x takes."""
    weight = drawn(1, outputs, x.shape[1], side, side) / side
    return {"x": x, "weight": weight, "bias": drawn(2, outputs) if bias else None}


LAYOUTS = ["plain", "channels last", "turned about", "a part"]


def layouts(tensor):
    """The same numbers, laid out in memory in several ways."""
    doubled = torch.stack([tensor, torch.full_like(tensor, torch.nan)], 2).flatten(1, 2)
    return {
        "plain": tensor.contiguous(),
        "channels last": tensor.contiguous(memory_format=torch.channels_last),
        "turned about": tensor.transpose(2, 3).contiguous().transpose(2, 3),
        "a part": doubled[:, ::2],
    }


def cases(outputs, most, wide=()):
    """Sizes, layouts and threads for hypothesis: sides up to `most`, or so `wide`."""
    side = some.integers(1, most)
    return {
        "batch": some.integers(1, 3),
        "inputs": some.sampled_from([16, 32, 48, 112]),
        "outputs": outputs,
        "height": side,
        "width": some.one_of(side, some.sampled_from(wide)) if wide else side,
        "bias": some.booleans(),
        "team": some.integers(1, 3),
        "layout": some.sampled_from(LAYOUTS),
        "weights": some.sampled_from(LAYOUTS),
    }


def case_of(precision, batch, inputs, outputs, height, width, bias, layout, weights, side=3):
    """The tensors of such a case."""
    x = drawn(0, batch, inputs, height, width, dtype=precision)
    given = tensors(layouts(x)[layout], outputs, bias, side)
    given["weight"] = layouts(given["weight"])[weights]
    return given


def assert_equal_gradients(kernel, reference, given, grad=None, limit=None, wanted=None):
    """What a kernel gives of tensors by name (some are None), and its gradients for those wanted
    (all, unless told), against the definition in float64.
    """
    wanted = given.keys() if wanted is None else wanted
    limit = limit or LIMITS[given["x"].dtype]
    found = {name: _leaf(tensor, name in wanted) for name, tensor in given.items()}
    exact = {name: _leaf(_double(tensor), name in wanted) for name, tensor in given.items()}
    y = kernel(*found.values())
    expected = reference(*exact.values())
    assert y.dtype is given["x"].dtype and y.shape == expected.shape
    assert relative(y, expected) < limit
    grad = torch.randn_like(expected).to(y.dtype) if grad is None else grad
    y.backward(grad)
    expected.backward(grad.double())
    for name, tensor in found.items():
        if tensor is None or name not in wanted:
            assert tensor is None or tensor.grad is None
            continue
        assert tensor.grad.dtype is tensor.dtype, name
        assert relative(tensor.grad, exact[name].grad) < limit, name


def _leaf(tensor, wanted):
    """Over the same memory, whatever its layout."""
    return None if tensor is None else tensor.detach().requires_grad_(wanted)


def _double(tensor):
    return None if tensor is None else tensor.double()
