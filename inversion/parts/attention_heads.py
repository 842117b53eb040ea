"""What a network's attention heads look at, and how alike they are.

On real images the heads of a trained layer agree about where things are; on noise they have little
in common. So the likeness of heads can stand in for the statistics that a network without BatchNorm
does not keep (MimiQ, Choi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

WINDOW = 11
"""Side of SSIM's Gaussian window; less where a map is smaller."""
DEVIATION = 1.5
"""Of that window, in tokens."""
STABLE = (0.01**2, 0.03**2)
"""SSIM's constants for images in [0, 1]."""
SMALLEST = 4
"""Tokens on the shorter side of a map that is a picture: that of a class token alone is not."""


class HeadMaps(TorchFunctionMode):
    """Keeps q·kᵀ of every attention layer that runs while this is entered, whatever the library.

    Heard are `scaled_dot_product_attention` (timm, Hugging Face, this project), a softmax over the
    keys of an attention that is written out, and `nn.MultiheadAttention` (torchvision).
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        """(B, heads, N, M) each, in float32: of N tokens that ask M."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.multi_head_attention_forward:
            heads = args[4]
            with self._within(heads):
                return function(*args, **kwargs)
        # An exported program calls `aten.softmax.int`, say.
        name = getattr(function, "__name__", "").split(".")[0]
        if name == "scaled_dot_product_attention":
            self._hear_product(*args, **kwargs)
        elif name in ("softmax", "_softmax"):
            self._hear_softmax(*args, **kwargs)
        return function(*args, **kwargs)

    @contextmanager
    def _within(self, heads: int) -> Iterator[None]:
        """Torch's own attention hides what it calls from a mode. It calls these two by name."""

        def attend(*args: Any, **kwargs: Any) -> Tensor:
            self._hear_product(*args, **kwargs)
            return product(*args, **kwargs)

        def weigh(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (B · heads, N, M)
            self._keep(scores.unflatten(0, (-1, heads)))
            return softmax(scores, *args, **kwargs)

        product = F.scaled_dot_product_attention
        softmax = F.softmax
        setattr(F, product.__name__, attend)
        setattr(F, softmax.__name__, weigh)
        try:
            yield
        finally:
            setattr(F, product.__name__, product)
            setattr(F, softmax.__name__, softmax)

    def _hear_product(self, query: Tensor, key: Tensor, *others: Any, **more: Any) -> None:
        if query.ndim == key.ndim == 4:
            with torch.autocast(query.device.type, enabled=False):
                self._keep(query.float() @ key.float().transpose(2, 3))

    def _hear_softmax(
        self, scores: Tensor, dim: int | None = None, *others: Any, **more: Any
    ) -> None:
        if scores.ndim == 4 and dim in (-1, 3):
            self._keep(scores)

    def _keep(self, scores: Tensor) -> None:
        if min(scores.shape[2:]) >= SMALLEST:
            self.maps.append(scores.float())


def with_heads(
    network: Callable[[Tensor], Tensor],
    images: Tensor,  # (B, C, H, W)
) -> tuple[Tensor, list[Tensor]]:  # (B, K), of (B, heads, N, M)
    """A network's answer, and the maps of all layers with two heads or more."""
    heard = HeadMaps()
    with heard:
        logits = network(images)
    return logits, [each for each in heard.maps if each.shape[1] > 1]


def head_difference(maps: Sequence[Tensor]) -> Tensor:  # of (B, heads, N, M) -> ()
    """Mean of 1 − SSIM² over all pairs of heads of a layer, images and layers: MimiQ's loss.

    Each head's map is an image, brought to [0, 1] by its least and greatest value.
    """
    # A layer has many pairs: what its SSIM needs is computed again when its gradient is wanted.
    layers = []
    for each in maps:
        difference = checkpoint(
            _layer_difference, each, use_reentrant=False, preserve_rng_state=False
        )
        layers.append(difference)
    return torch.stack(layers).mean()


def _layer_difference(scores: Tensor) -> Tensor:  # (B, heads, N, M) -> ()
    images = stretched(scores)
    heads = images.shape[1]
    one, other = torch.triu_indices(heads, heads, 1, device=scores.device)
    return (1 - ssim_of_pairs(images, one, other) ** 2).mean()


def stretched(scores: Tensor) -> Tensor:  # (B, heads, N, M)
    """Each map from 0 to 1."""
    least = scores.amin((2, 3), keepdim=True)
    greatest = scores.amax((2, 3), keepdim=True)
    return (scores - least) / (greatest - least).clamp_min(1e-6)


def ssim_of_pairs(
    images: Tensor,  # (B, heads, N, M) in [0, 1]
    one: Tensor,  # (P,) heads
    other: Tensor,  # (P,)
) -> Tensor:  # (B, P)
    """Structural similarity (Wang et al. 2004) of pairs of heads: the mean over all places at which
    the window lies inside.
    """
    mean = blur(images)
    variance = blur(images**2) - mean**2
    means = mean[:, one] * mean[:, other]
    covariance = blur(images[:, one] * images[:, other]) - means
    squares = mean**2
    light = (2 * means + STABLE[0]) / (squares[:, one] + squares[:, other] + STABLE[0])
    shape = (2 * covariance + STABLE[1]) / (variance[:, one] + variance[:, other] + STABLE[1])
    return (light * shape).mean((2, 3))


def blur(images: Tensor) -> Tensor:  # (B, P, N, M) -> (B, P, n, m)
    """The Gaussian window's average, down and across. As products: a convolution of one channel is
    several times as slow on a CPU.
    """
    side = min(WINDOW, *images.shape[2:])
    down, across = (_windows(length, side, images) for length in images.shape[2:])
    return down @ images @ across.T


def _windows(length: int, side: int, like: Tensor) -> Tensor:  # (n, length)
    """One window a row, each a place further on than the one before."""
    starts = torch.arange(length - side + 1, dtype=like.dtype, device=like.device)
    place = torch.arange(length, dtype=like.dtype, device=like.device) - starts[:, None]
    weight = (-((place - (side - 1) / 2) ** 2) / (2 * DEVIATION**2)).exp()
    weight = weight * ((place >= 0) & (place < side))
    return weight / weight.sum(1, keepdim=True)


def has_heads(network: nn.Module, images: Tensor) -> bool:  # (B, C, H, W)
    """Whether some layer of the network has two heads or more to compare."""
    # With a gradient in view: without one, torch's attention may take a way of its own.
    with torch.enable_grad():
        _, maps = with_heads(network, images.requires_grad_())
    return bool(maps)
