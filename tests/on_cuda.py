"""A teacher and options in tests on a CUDA device."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_options

from inversion import load_teacher


def cuda_teacher():
    return load_teacher().to("cuda", memory_format=torch.channels_last)


def later_options():
    """What the CIFAR-10 configurations add to the published method."""
    options = tiny_options()
    generator = replace(options.generator, learning="plain", blocks=1, smooth=1.0)
    views = replace(options.views, cutmix=0.5, mixup=0.5)
    return replace(
        options,
        generator=generator,
        adversary=replace(options.adversary, views_per_image=2, hints=20.0),
        views=views,
    )


EITHER = pytest.mark.parametrize(
    "options", [tiny_options(), later_options()], ids=["published", "later"]
)
