"""Opening pictures that anybody may have made: few formats, files alone, and of bounded size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.limits import MEGABYTE, VARIABLE, limit, require_room
from synthesis_kernels.errors import EchosetError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""Pillow's names of what is opened, by its content. Other readers of Pillow's start programs, as
that of EPS starts Ghostscript.
"""
MORE = (*FORMATS, "PPM", "TIFF")
"""What torchvision's data sets are in."""
BYTES = 10
"""That a pixel takes while it is read, about: as it was packed, as an array, and as a number."""
GREYING = 20
"""The same where colour becomes grey, for which all channels are numbers at once."""


def open_picture(path: Path, pixel: int = BYTES) -> Image:
    """A picture whose pixels are read when they are wanted; each then takes so many bytes."""
    # A pipe would be waited for.
    if not path.is_file():
        raise EchosetError(f"{path} is no file")
    return _open(_pillow().open, path, FORMATS, path, pixel)


@contextmanager
def pictures_checked() -> Iterator[None]:
    """Inside, whoever opens a file by Pillow's own function gets pictures as from `open_picture`,
    too: torchvision's data sets do.
    """
    module = _pillow()
    own = module.open

    def checked(file: Any, *_: object, **__: object) -> Image:
        name = getattr(file, "name", file)
        place = Path(name) if isinstance(name, str | Path) else None
        return _open(own, file, MORE, place, GREYING)

    module.open = checked
    try:
        yield
    finally:
        module.open = own


def _pillow() -> Any:
    from PIL import Image

    return Image


def _open(
    opener: Callable[..., Image], file: Any, formats: Sequence[str], place: Path | None, pixel: int
) -> Image:
    module = _pillow()
    # Pillow's own limit, which does not know the user's, gives way to it.
    module.MAX_IMAGE_PIXELS = max(module.MAX_IMAGE_PIXELS or 0, limit() // BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", module.DecompressionBombWarning)
        try:
            picture = opener(file, formats=formats)
        except module.DecompressionBombError as error:
            raise EchosetError(
                f"{place or 'a picture'}: {error} Where you trust it, raise {VARIABLE} in the "
                f"environment, which is {limit() // MEGABYTE}"
            ) from error
    try:
        needed = picture.width * picture.height * pixel
        require_room(needed, place, f"its {picture.width:,} × {picture.height:,} pixels")
    except EchosetError:
        picture.close()
        raise
    return picture
