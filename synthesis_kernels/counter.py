"""Random numbers that are a function of their place: (seed, image, view, lane) → [0, 1). They have
no state and no order.

What a stored image looks like in its v-th view follows from the image's index, v and a seed alone;
so views need not be stored, come out alike in any batch, and are the same on every device and in
every form of a kernel.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form

Number = TypeVar("Number", int, Tensor)
_MASK = 0xFFFFFFFF
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of the 32-bit mixer "lowbias32" (C. Wellons, public domain): full avalanche."""
LANE_STEP = 0x9E3779B9
"""2³²/φ, odd: lanes start far apart."""


def mix(x: Number) -> Number:
    """Scramble 32-bit integers: Python's, or a tensor's int64 (products wrap, and only their low 32
    bits are kept).
    """
    x = (x ^ (x >> 16)) * MULTIPLIERS[0] & _MASK
    x = (x ^ (x >> 15)) * MULTIPLIERS[1] & _MASK
    return x ^ (x >> 16)


def start_place(seed: int) -> int:
    """Where a seed's numbers begin, below 2³²."""
    # The seed is scrambled first: seeds 0 and 1 must not merely swap the draws of neighbouring
    # images.
    return mix(mix(seed >> 32 & _MASK) + (seed & _MASK) & _MASK)


def uniforms_reference(
    index: Tensor,  # (B,) int64, below 2³²
    view: Tensor,  # (B,) int64, below 2³², or () for all
    seed: int,
    lanes: int,
) -> Tensor:  # (lanes, B) float32 in [0, 1)
    """Definition: `lanes` independent numbers for each (index, view)."""
    key = mix(mix(index + start_place(seed) & _MASK) + view & _MASK)
    steps = torch.arange(1, lanes + 1, device=index.device) * LANE_STEP & _MASK
    # 24 bits: all of them fit a float32 exactly, and 1.0 can't come out.
    return (mix(key + steps[:, None] & _MASK) >> 8).float() * 2.0**-24


def as_places(index: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Both as the kernels read them: int64, contiguous, and a view for each index, or one for
    all.
    """
    if view.ndim:
        view = view.expand_as(index)
    return index.long().contiguous(), view.long().contiguous()


def uniforms(index: Tensor, view: Tensor, seed: int, lanes: int) -> Tensor:
    """The same numbers, drawn at once."""
    form = pick_form(index)
    if form == "reference":
        return uniforms_reference(index, view, seed, lanes)
    index, view = as_places(index, view)
    out = torch.empty(lanes, len(index), device=index.device)
    if form == "triton":
        from synthesis_kernels.triton_forms.counter import draw_uniforms

        draw_uniforms(index, view, out, seed)
        return out
    sizes = (len(index), lanes, start_place(seed))
    native.call("uniforms", torch.float32, index, view, view.ndim, out, *sizes)
    return out
