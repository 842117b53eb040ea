"""Noise: its distributions, by their definitions."""

import math

import numpy as np
import pytest
import torch
from drawing import floats

from inversion.sources.stream import open_source


def test_uniform_noise_is_uniform_and_each_pixel_drawn_alone():
    values = open_source("noise", 3, 28).block(0)
    expected = torch.full((256,), values.numel() / 255).double()
    expected[[0, -1]] /= 2  # rounding leaves the ends half as wide
    surprise = (
        (torch.bincount(values.flatten().long(), minlength=256) - expected).square() / expected
    ).sum()
    assert 255 - 5 * 22.6 < surprise < 255 + 5 * 22.6  # χ² with 255 degrees of freedom
    centred = values.double() - values.double().mean()
    for one, other in (
        (centred[..., 1:], centred[..., :-1]),
        (centred[:, :, 1:], centred[:, :, :-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[1:], centred[:-1]),
    ):
        correlation = (one * other).mean() / centred.square().mean()
        assert correlation.abs() < 4 / math.sqrt(one.numel())


def test_gaussian_noise_has_the_stated_deviation():
    narrow = open_source("gaussian:deviation=0.1", 1, 28).block(0).double()
    assert narrow.mean().item() == pytest.approx(127.5, abs=0.2)
    assert narrow.std().item() == pytest.approx(25.5, abs=0.1)
    wide = open_source("gaussian", 1, 28).block(0)
    for end in (0, 255):  # two deviations away
        assert (wide == end).double().mean().item() == pytest.approx(0.0228, abs=0.002)


def amplitude_slopes(pictures):  # (N, size, size) -> (N,)
    """The exponents by which amplitude falls with frequency, by numpy's transform and least
    squares.
    """
    size = pictures.shape[-1]
    amplitude = np.abs(np.fft.fft2(pictures.numpy())).reshape(len(pictures), -1)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))).ravel()
    inside = (frequency > 0) & (frequency < 0.5)
    x = np.log(frequency[inside])
    x = x - x.mean()
    return np.log(amplitude[:, inside] + 1e-9) @ x / (x @ x)


def test_pink_noise_falls_with_frequency():
    slopes = amplitude_slopes(floats("pink", 1, 32)[:, 0])
    assert slopes.mean() == pytest.approx(-1.25, abs=0.06)  # uniform from 0.5 to 2
    assert np.percentile(slopes, 5) < -1.75
    assert np.percentile(slopes, 95) > -0.75
    assert slopes.min() > -2.3
    assert slopes.max() < -0.2
    assert amplitude_slopes(floats("noise", 1, 32)[:, 0]).mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("address", ["smooth", "pink"])
def test_noise_that_is_stretched_spans_the_range_in_each_picture(address):
    block = open_source(address, 3, 28).block(0).flatten(1)
    assert (block.amin(1) == 0).all()
    assert (block.amax(1) == 255).all()


def test_smooth_noise_is_smooth_to_different_degrees():
    pictures = floats("smooth", 1, 32)
    jumps = (pictures[..., 1:] - pictures[..., :-1]).abs().mean((1, 2, 3))
    assert jumps.max() < 0.15
    assert jumps.max() > 3 * jumps.min()
