"""RandAugment (Cubuk et al. 2020) with kornia's operations, each image having its own operations
and sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import kornia.enhance as enhance
import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]


def _shear(images: Tensor, size: Tensor, axis: int) -> Tensor:
    matrix = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    matrix[:, axis, 1 - axis] = 0.6 * size
    return F.grid_sample(
        images, F.affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False
    )


def _saturate(images: Tensor, size: Tensor) -> Tensor:
    # A grey image has no colour to strengthen; its gamma is changed instead.
    if images.shape[1] == 3:
        return enhance.adjust_saturation_with_gray_subtraction(images, 1 + 0.9 * size)
    return enhance.adjust_gamma(images, (1.2 * size).exp(), gain=images.new_ones(1))


def _stretch(images: Tensor, size: Tensor) -> Tensor:
    flat = images.amax((2, 3), keepdim=True) == images.amin((2, 3), keepdim=True)
    return torch.where(flat, images, enhance.normalize_min_max(images.contiguous()))


# Sizes lie in [−strength, strength]: half of the changes of light go each way.
OPERATIONS: dict[str, Operation] = {
    "brightness": lambda images, size: enhance.adjust_brightness(images, 0.7 * size),
    "contrast": lambda images, size: enhance.adjust_contrast_with_mean_subtraction(
        images, 1 + 0.9 * size
    ),
    "colour": _saturate,
    "sharpness": lambda images, size: enhance.sharpness(images, 1 + 0.9 * size),
    "posterize": lambda images, size: enhance.posterize(images, (8 - 6 * size.abs()).round().int()),
    # A little above 1, since kornia inverts what lies at the threshold, too.
    "solarize": lambda images, size: enhance.solarize(images, 1 + 1 / 512 - size.abs()),
    "equalize": lambda images, size: enhance.equalize(images.contiguous()),
    "autocontrast": _stretch,
    "shear-x": lambda images, size: _shear(images, size, 0),
    "shear-y": lambda images, size: _shear(images, size, 1),
}


def randaugment(
    images: Tensor,  # (B, C, H, W) in [0, 1]
    draws: Tensor,  # (rounds, 3, B) in [0, 1): operation, size, sign
    strength: float,
) -> Tensor:
    """As many operations as there are rounds, one after another."""
    for choice, size, sign in draws:
        choice = (choice * len(OPERATIONS)).long().clamp_max(len(OPERATIONS) - 1)
        size = size * strength * torch.where(sign < 0.5, -1.0, 1.0)
        changed = images.clone()
        for number, operation in enumerate(OPERATIONS.values()):
            if images.device.type == "cpu":
                mine = (choice == number).nonzero()[:, 0]
                if len(mine):
                    changed[mine] = operation(images[mine], size[mine])
            # Finding out whose turn it is would wait for the device: everyone's is computed, and
            # taken where wanted
            else:
                changed = torch.where(
                    (choice == number)[:, None, None, None], operation(images, size), changed
                )
        images = changed.clamp(0, 1)
    return images
