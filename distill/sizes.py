"""Height and width of images, and how they are told: one number stands for square ones. No torch
here.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from synthesis_kernels.errors import EchosetError

Size: TypeAlias = int | tuple[int, int]
"""The side of square images, or the height and the width of others."""
MOST = 8192
"""Pixels along a side."""


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def settle_size(value: Any) -> Any:
    """A pair as JSON has it is a tuple, of two equal sides one; anything else stays as it is."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return value
    height, width = value
    return height if height == width else (height, width)


def read_size(value: Any, least: int = 1) -> Size:
    """A size as users write it: 32, 96x128 (height first), [96, 128]."""
    told = value
    if isinstance(value, str):
        numbers = re.fullmatch(r"(\d{1,6})(?: ?[xX×] ?(\d{1,6}))?", value.strip())
        told = numbers and (int(numbers[1]), int(numbers[2] or numbers[1]))
    elif type(value) is int:
        told = (value, value)
    is_pair = isinstance(told, list | tuple) and len(told) == 2
    if not is_pair or any(type(side) is not int for side in told):
        raise EchosetError(
            f"size must be one number, or HEIGHTxWIDTH such as 96x128, got {value!r:.40}"
        )
    size: Size = settle_size(told)
    if min(told) < least:
        raise EchosetError(f"size must be at least {least}, got {say_size(size)}")
    if max(told) > MOST:
        raise EchosetError(f"size must be at most {MOST:,}, got {say_size(size)}")
    return size


def say_size(size: Any) -> str:
    """As it is written: 32, or 96x128."""
    return "x".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
