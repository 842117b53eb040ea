"""RandAugment (Cubuk et al. 2020) with kornia's operations, each image having its own operations
and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import kornia.enhance as enhance
import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]


def _shear(
    images: Tensor,  # (B, C, H, W), as in every operation
    size: Tensor,  # (B,), as in every operation
    axis: int,
) -> Tensor:
    matrix = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    # In pixels: the grid is 2 high and 2 wide, whatever the image is.
    matrix[:, axis, 1 - axis] = 0.6 * size * (images.shape[2 + axis] / images.shape[3 - axis])
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _saturate(images: Tensor, size: Tensor) -> Tensor:
    # A grey image has no colour to strengthen; its gamma is changed instead.
    if images.shape[1] == 3:
        return enhance.adjust_saturation_with_gray_subtraction(images, 1 + 0.9 * size)
    return enhance.adjust_gamma(images, (1.2 * size).exp(), gain=images.new_ones(1))


def _contrast(images: Tensor, size: Tensor) -> Tensor:
    return enhance.adjust_contrast_with_mean_subtraction(images, 1 + 0.9 * size)


def _posterize(images: Tensor, size: Tensor) -> Tensor:
    bits = (8 - 6 * size.abs()).round().int()
    return enhance.posterize(images, bits)


def _solarize(images: Tensor, size: Tensor) -> Tensor:
    # A little above 1, since kornia inverts what lies at the threshold, too.
    return enhance.solarize(images, 1 + 1 / 512 - size.abs())


def _stretch(images: Tensor, size: Tensor) -> Tensor:
    flat = images.amax((2, 3), keepdim=True) == images.amin((2, 3), keepdim=True)
    return torch.where(flat, images, enhance.normalize_min_max(images.contiguous()))


# Sizes lie in [−strength, strength]: half of the changes of light go each way.
OPERATIONS: dict[str, Operation] = {
    "brightness": lambda images, size: enhance.adjust_brightness(images, 0.7 * size),
    "contrast": _contrast,
    "colour": _saturate,
    "sharpness": lambda images, size: enhance.sharpness(images, 1 + 0.9 * size),
    "posterize": _posterize,
    "solarize": _solarize,
    "equalize": lambda images, size: enhance.equalize(images.contiguous()),
    "autocontrast": _stretch,
    "shear-x": lambda images, size: _shear(images, size, 0),
    "shear-y": lambda images, size: _shear(images, size, 1),
}

MOVING = ("shear-x", "shear-y")
"""Those that move pixels; the others change what they are."""


def randaugment(
    images: Tensor,  # (B, C, H, W) in [0, 1]
    draws: Tensor,  # (rounds, 3, B) in [0, 1): operation, size, sign
    strength: float,
    done: Collection[str] = tuple(OPERATIONS),
) -> Tensor:
    """As many operations as there are rounds, one after another; of those that are drawn, the ones
    named in `done` are done.
    """
    for choice, size, sign in draws:
        number = (choice * len(OPERATIONS)).long().clamp_max(len(OPERATIONS) - 1)
        size = size * strength * torch.where(sign < 0.5, -1.0, 1.0)
        if images.device.type == "cpu":
            changed = _operate_on_chosen(images, number, size, done)
        else:
            changed = _operate_on_all(images, number, size, done)
        images = changed.clamp(0, 1)
    return images


def _operate_on_chosen(
    images: Tensor,
    number: Tensor,  # (B,) int64: each image's operation
    size: Tensor,  # (B,)
    done: Collection[str],
) -> Tensor:
    """Each operation on the images that drew it."""
    changed = images.clone()
    for place, (name, operation) in enumerate(OPERATIONS.items()):
        chosen = (number == place).nonzero()[:, 0]
        if len(chosen) and name in done:
            changed[chosen] = operation(images[chosen], size[chosen])
    return changed


def _operate_on_all(images: Tensor, number: Tensor, size: Tensor, done: Collection[str]) -> Tensor:
    """The same where finding out which images drew an operation would wait for the device: every
    operation on all images, taken where it was drawn.
    """
    changed = images.clone()
    for place, (name, operation) in enumerate(OPERATIONS.items()):
        if name in done:
            chosen = (number == place)[:, None, None, None]
            changed = torch.where(chosen, operation(images, size), changed)
    return changed
