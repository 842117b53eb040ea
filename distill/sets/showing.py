"""A set at a glance: in a line, and as a sheet of some of its pictures, a row a class."""

from __future__ import annotations

import base64
import io
from html import escape

import torch
from PIL import Image
from torch import Tensor

from distill.data.palette import css_colour
from distill.names import printable, show_class
from distill.sets.forms.content import channels_last
from distill.sets.transfer_set import TransferSet
from synthesis_kernels.errors import EchosetError

ROWS = 10
COLUMNS = 10
SIDE = 64
"""Pixels of a picture on the sheet, at least: smaller ones are enlarged by a whole number."""
GAP = 2


def describe(data: TransferSet) -> str:
    """The set in a line."""
    manifest = data.manifest
    channels, height, width = data.images.shape[1:]
    words = data.task.words
    each = words.spread(data.counts())
    if words.shares:
        each = f"{each} {words.measure}"
    parts = [
        f"{len(data):,} images {channels}×{height}×{width}",
        f"{data.classes} classes of {each}",
        f"by {manifest.get('method', 'hand')}",
        f"from {manifest['teacher'].get('model', 'a network')}",
    ]
    if data.answers is not None:
        parts.append(f"answers to {data.answers.per_image} views of each")
    return printable(f"TransferSet({', '.join(parts)})")


def contact_sheet(data: TransferSet, rows: int = ROWS, columns: int = COLUMNS) -> Image.Image:
    """Some pictures of the set, the first of each class; of many classes some, from first to
    last. Where labels are maps, each has its own below it.
    """
    if rows < 1 or columns < 1:
        raise EchosetError(f"a sheet has 1 row and 1 column at least, not {rows} and {columns}")
    zoom = max(1, SIDE // max(data.images.shape[2:]))
    groups = data.groups
    kept = [groups.eq(label).nonzero().flatten()[:columns] for label in _some(groups, rows)]
    shown = [_with_maps(data, places) for places in kept]
    channels, height, width = shown[0].shape[1:]
    sheet = torch.full(
        (channels, len(kept) * (height + GAP) - GAP, columns * (width + GAP) - GAP),
        255,
        dtype=torch.uint8,
    )
    for row, pictures in enumerate(shown):
        for column, picture in enumerate(pictures):
            top = row * (height + GAP)
            left = column * (width + GAP)
            sheet[:, top : top + height, left : left + width] = picture
    pixels = channels_last(sheet)
    return Image.fromarray(pixels).resize(
        (pixels.shape[1] * zoom, pixels.shape[0] * zoom), Image.Resampling.NEAREST
    )


def _some(groups: Tensor, most: int) -> list[int]:
    """Classes that have images, at most so many, spread evenly."""
    present = groups.unique().tolist()
    count = min(most, len(present))
    return [present[len(present) * row // count] for row in range(count)]


def _with_maps(data: TransferSet, places: Tensor) -> Tensor:  # (n,) -> (n, 1 or 3, h, W)
    """Images, and below each its label map, where it has one."""
    images = _in_colours(data.images[places])
    maps = data.task.paint(data.labels[places])
    if maps is None:
        return images
    return torch.cat([images.expand(-1, 3, -1, -1), maps], 2)


def _in_colours(images: Tensor) -> Tensor:  # (n, C, H, W) -> (n, 1 or 3, H, W)
    """What Pillow can show: of two channels the first, of more than three the first three."""
    return images[:, :1] if images.shape[1] < 3 else images[:, :3]


def as_html(data: TransferSet) -> str:
    """The line and the sheet, as notebooks show an object."""
    file = io.BytesIO()
    contact_sheet(data).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    shown = [show_class(label, data.class_names) for label in _some(data.groups, ROWS)]
    return (
        f"<p><code>{escape(describe(data))}</code></p>"
        f'<img alt="some of its images" src="data:image/png;base64,{picture}">'
        f"<p>A row a class: {escape(', '.join(shown))}</p>"
        f"{_legend(data)}"
    )


def _legend(data: TransferSet) -> str:
    """The colours of label maps; nothing where there are none."""
    if data.task.paint(data.labels[:1]) is None:
        return ""
    parts = []
    for label in range(data.classes):
        box = f'<span style="color: {css_colour(label)}">■</span>'
        parts.append(f"{box} {escape(show_class(label, data.class_names))}")
    return f"<p>{' '.join(parts)}</p>"
