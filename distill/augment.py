"""Random views of a batch, drawn from an explicit generator so that a seed fixes them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import ViewOptions


def random_views(images: Tensor, options: ViewOptions, generator: torch.Generator) -> Tensor:
    """A rotated, scaled, shifted (and perhaps mirrored) view of each image, (B, C, H, W) in [0, 1]."""
    if not (options.rotate or options.scale or options.shift or options.flip):
        return images
    draws = torch.rand(5, len(images), generator=generator, device=images.device) * 2 - 1
    angle, zoom = draws[0] * math.radians(options.rotate), 1 + draws[1] * options.scale
    # One side of the sampling grid is 2 long, hence the factor of two.
    right, down = draws[2] * 2 * options.shift, draws[3] * 2 * options.shift
    mirror = torch.where(draws[4] < 0, -1.0, 1.0) if options.flip else torch.ones_like(zoom)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    matrix = torch.stack([torch.stack([cosine * mirror, -sine, right], 1), torch.stack([sine * mirror, cosine, down], 1)], 1)
    return F.grid_sample(images, F.affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False)


def mixup(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each image with another of the batch, in a proportion drawn uniformly for each."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.lerp(images.roll(1, 0), images, share)
