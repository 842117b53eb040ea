"""What tests of the scorecard share."""

import torch

from distill import ModelSpec

SPEC = ModelSpec("tiny", channels=1, size=8, classes=3, mean=(0.4,), std=(0.5,))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(count, seed=0, side=8):
    return torch.randint(
        256,
        (count, 1, side, side),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )
