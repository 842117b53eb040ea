"""Pixels: what data sets give as a picture, and what a network takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.sizes import Size, sides
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from PIL.Image import Image

LUMA = (0.299, 0.587, 0.114)
AT_ONCE = 1000
"""Images that are converted together."""


def fit_pixels(
    pixels: Tensor,  # (N, C, H, W) uint8
    channels: int,
    size: Size,
) -> Tensor:  # (N, channels, height, width) uint8
    """Convert between grey and colour, and resize with antialiasing; pixels that fit already come
    back as they are.
    """
    if tuple(pixels.shape[1:]) == (channels, *sides(size)):
        return pixels
    if pixels.shape[1] != channels and not {pixels.shape[1], channels} <= {1, 3}:
        raise EchosetError(
            f"images have {pixels.shape[1]} channels, the network takes {channels}; only 1 and 3 "
            "can be converted"
        )
    return torch.cat([_fit_part(part, channels, size) for part in pixels.split(AT_ONCE)])


def _fit_part(pixels: Tensor, channels: int, size: Size) -> Tensor:
    values = pixels.float()
    if values.shape[1] > channels:
        luma = torch.tensor(LUMA, device=values.device).view(1, 3, 1, 1)
        values = (values * luma).sum(1, keepdim=True)
    if tuple(values.shape[2:]) != sides(size):
        values = F.interpolate(
            values, sides(size), mode="bilinear", antialias=True, align_corners=False
        )
    return values.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1)


def stack_items(
    dataset: Iterable[Any], name: str, channels: int, size: Size
) -> tuple[Tensor, Tensor | None]:  # (N, channels, height, width) uint8, (N,) int64
    """The pictures of a data set, and their labels where all are whole numbers.

    An item is a picture, or a tuple that begins with picture and label.
    """
    images: list[Tensor] = []
    labels: list[Any] = []
    for number, item in enumerate(dataset):
        picture, label = _split_item(item)
        pixels = to_pixels(picture, f"{name}, item {number}", channels)
        images.append(fit_pixels(pixels[None], channels, size))
        labels.append(label)
    if not images:
        raise EchosetError(f"{name} is empty")
    if not all(_is_whole(label) for label in labels):
        return torch.cat(images), None
    return torch.cat(images), torch.tensor([int(label) for label in labels])


def _split_item(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list):
        return item, None
    if len(item) == 1:
        return item[0], None
    return item[0], item[1]


def _is_whole(label: Any) -> bool:
    """Whether a label is a whole number, as Python, NumPy or torch have them."""
    if isinstance(label, int | np.integer):
        return True
    return getattr(label, "ndim", 1) == 0 and "int" in str(label.dtype)


def to_pixels(picture: Any, name: str, channels: int | None = None) -> Tensor:  # (C, H, W) uint8
    """One picture in any of the forms that data sets give. Transparency is kept only where the
    picture has exactly the `channels` that are wanted.
    """
    if isinstance(picture, Tensor):
        pixels = _bytes_of_unit(picture)
    elif isinstance(picture, np.ndarray):
        array = picture[..., None] if picture.ndim == 2 else picture
        pixels = torch.from_numpy(array).movedim(-1, 0)
    elif hasattr(picture, "convert"):
        pixels = _from_pillow(picture, channels)
    else:
        raise EchosetError(
            f"{name} is a {type(picture).__name__}, not a picture, an array or a tensor"
        )
    if pixels.dtype is not torch.uint8 or pixels.ndim != 3:
        kind = str(pixels.dtype).removeprefix("torch.")
        raise EchosetError(
            f"{name} is {kind} of shape {tuple(picture.shape)}; expected uint8, or a tensor "
            "(C, H, W) in [0, 1]"
        )
    return pixels


def _bytes_of_unit(picture: Tensor) -> Tensor:
    """A tensor (C, H, W) in [0, 1] as bytes; any other as it is."""
    if not picture.is_floating_point() or picture.ndim != 3 or not picture.numel():
        return picture
    if picture.min() < 0 or picture.max() > 1:
        return picture
    return (picture * 255).round().to(torch.uint8)


def _from_pillow(picture: Image, channels: int | None) -> Tensor:  # (C, H, W) uint8
    # 16 bits, which Pillow would clip and not scale
    if picture.mode.startswith("I"):
        scaled = np.asarray(picture) / 257
        return torch.from_numpy(scaled.round().clip(0, 255).astype(np.uint8))[None]
    if picture.mode == "L":
        return torch.from_numpy(np.array(picture))[None]
    if (picture.mode, channels) in (("LA", 2), ("RGBA", 4)):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
