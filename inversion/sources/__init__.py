"""Images that need no generator: noise, procedural pictures, any folder or data set, a finished
set, and unions of these.

A source is a stream of blocks, each the same whenever it is asked for: block n follows from the
source, the seed and n. One that is drawn is one file or folder with a frozen dataclass, and one
line in `DRAWN`. Its fields are its settings, numbers above 0 and up to 1.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from distill.presence import suggest_place
from synthesis_kernels.errors import EchosetError, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from inversion.sources.random import Random

DRAWN = {
    "noise": "noise:UniformNoise",
    "gaussian": "noise:GaussianNoise",
    "smooth": "noise:SmoothNoise",
    "pink": "noise:PinkNoise",
    "leaves": "leaves:Leaves",
    "shaders": "shaders:Shaders",
    "fractals": "fractals:Fractals",
    "strokes": "strokes:Strokes",
}
"""Every source that is drawn from a seed, without end, and where it is."""


class Drawer(Protocol):
    """What draws a block of images."""

    def draw(self, random: Random, count: int, channels: int, height: int, width: int) -> Tensor:
        """Images (count, C, H, W) in [0, 1]; they follow from `random` alone."""


def require_source(address: str) -> None:
    """Refuse an address of images that is neither a source's, nor leads anywhere."""
    name, _, _ = address.partition(":")
    if name in DRAWN or name == "torchvision" or Path(address).exists():
        return
    meant = suggest(name, DRAWN) or suggest_place(address)
    raise EchosetError(
        f"no source '{address}': it is neither {', '.join(DRAWN)}, nor a file or folder{meant}"
    )


def find_drawer(name: str) -> type[Any]:
    """The class of the source of this name."""
    module, _, attribute = DRAWN[name].partition(":")
    return getattr(import_module(f"inversion.sources.{module}"), attribute)
