"""Doubling and convolving, against its definition."""

import pytest
import torch
from torch.autograd import gradcheck

from synthesis_kernels.upsample_conv import upsample_conv, upsample_conv_reference


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 2)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_upsample_conv_equals_its_definition(size, with_bias):
    x, weight = (
        torch.randn(2, 3, *size, dtype=torch.float64),
        torch.randn(4, 3, 3, 3, dtype=torch.float64),
    )
    bias = torch.randn(4, dtype=torch.float64) if with_bias else None
    expected = upsample_conv_reference(x, weight, bias)
    torch.testing.assert_close(upsample_conv(x, weight, bias), expected)
    last = upsample_conv(x.contiguous(memory_format=torch.channels_last), weight, bias)
    torch.testing.assert_close(last, expected)


def test_upsample_conv_gradient_by_finite_differences():
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 2, 3, 2), (2, 2, 3, 3), (2,))
    ]
    assert gradcheck(upsample_conv, inputs)
