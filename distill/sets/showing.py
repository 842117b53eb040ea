"""A set at a glance: in a line, and as a sheet of some of its pictures, a row a class."""

from __future__ import annotations

import base64
import io
from html import escape

import torch
from PIL import Image
from torch import Tensor

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
    counts = data.counts()
    each = f"{min(counts):,}"
    if max(counts) > min(counts):
        each += f" to {max(counts):,}"
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
    last.
    """
    if rows < 1 or columns < 1:
        raise EchosetError(f"a sheet has 1 row and 1 column at least, not {rows} and {columns}")
    channels, height, width = data.images.shape[1:]
    zoom = max(1, SIDE // max(height, width))
    groups = data.groups
    kept = [groups.eq(label).nonzero().flatten()[:columns] for label in _some(groups, rows)]
    sheet = torch.full(
        (channels, len(kept) * (height + GAP) - GAP, columns * (width + GAP) - GAP),
        255,
        dtype=torch.uint8,
    )
    for row, places in enumerate(kept):
        for column, place in enumerate(places):
            top = row * (height + GAP)
            left = column * (width + GAP)
            sheet[:, top : top + height, left : left + width] = data.images[place]
    pixels = channels_last(_in_colours(sheet))
    return Image.fromarray(pixels).resize(
        (pixels.shape[1] * zoom, pixels.shape[0] * zoom), Image.Resampling.NEAREST
    )


def _some(groups: Tensor, most: int) -> list[int]:
    """Classes that have images, at most so many, spread evenly."""
    present = groups.unique().tolist()
    count = min(most, len(present))
    return [present[len(present) * row // count] for row in range(count)]


def _in_colours(image: Tensor) -> Tensor:  # (C, H, W) -> (1 or 3, H, W)
    """What Pillow can show: of two channels the first, of more than three the first three."""
    return image[:1] if len(image) < 3 else image[:3]


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
    )
