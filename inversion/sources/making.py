"""What is done about classes that are short: images made of those held, of a source's, and of
where the teacher's boundaries run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.data.augment import make_views
from distill.models import Classifier
from distill.options import ViewOptions
from inversion.options import CollectOptions
from inversion.sources.boundary import attack_boundaries
from inversion.sources.random import Random
from inversion.sources.stock import Stock
from inversion.sources.stream import BLOCK, Source


def make_block(
    way: str,
    number: int,
    stock: Stock,
    sources: list[Source],
    teacher: Classifier,
    options: CollectOptions,
    seed: int,
) -> Tensor:  # (≤ BLOCK, C, H, W) uint8
    """Images made for classes that are short, from those held and from the sources' in turn."""
    source = sources[number % len(sources)]
    random = Random(source.device, way, seed, number)
    if way == "augment":
        return augmented(stock, options.views, random, seed, number)
    images = _in_turn(source, number // len(sources), options.views, seed)
    if way == "mixup":
        return mixed(stock, images, random)
    return pushed(stock, images, teacher, options, random)


def _in_turn(
    source: Source, turn: int, views: ViewOptions, seed: int
) -> Tensor:  # (≤ BLOCK, C, H, W) uint8
    """The source's blocks from the first one on; of a source that ends, after the last one views
    of the first: the same walk from the same picture would end in a copy.
    """
    if source.blocks is None:
        return source.block(turn)
    again, block = divmod(turn, source.blocks)
    images = source.block(block)
    if not again:
        return images
    index = torch.arange(len(images), device=images.device)
    return _stored(make_views(images, index, torch.full_like(index, again), views, seed))


def augmented(
    stock: Stock, options: ViewOptions, random: Random, seed: int, number: int
) -> Tensor:  # (≤ BLOCK, C, H, W) uint8
    """New views of images whose classes are short, the shorter the more."""
    kept = stock.kept()
    chances = stock.lacking(kept).float()
    if not chances.any():
        return stock.images[:0]
    drawn = random.draw(chances, BLOCK)
    view = torch.arange(BLOCK, device=drawn.device) + BLOCK * number
    return _stored(make_views(stock.images[kept], drawn, view, options, seed))


def mixed(stock: Stock, images: Tensor, random: Random) -> Tensor:  # (B, C, H, W) uint8
    """Blends of two images: one of a short class where there are any, and one from the source."""
    kept = stock.kept()
    short = kept[stock.lacking(kept) > 0]
    if len(short):
        partner = short
        low, high = 0.5, 0.95
    else:
        partner = kept
        low, high = 0.2, 0.8
    if not len(partner):
        return images[:0]
    drawn = partner[random.integers(0, len(partner) - 1, len(images))]
    share = random.uniform(len(images), 1, 1, 1, low=low, high=high)
    return torch.lerp(images.float(), stock.images[drawn].float(), share).round().to(torch.uint8)


def pushed(
    stock: Stock,
    images: Tensor,  # (B, C, H, W) uint8
    teacher: Classifier,
    options: CollectOptions,
    random: Random,
) -> Tensor:  # (≤ 2B, C, H, W) uint8
    """Images over the boundary into short classes: of each walk the one just over it and the one a
    step deeper.
    """
    missing = stock.missing()
    # Two of each walk, and some walks fail.
    wanted = min(len(images), -(-int(missing.sum()) * 3 // 4))
    targets = random.draw(missing.float(), max(wanted, 2))[: len(images), None]
    samples = attack_boundaries(teacher, images[: len(targets)], targets, options.boundary)
    return torch.cat([samples.deep_after[samples.found], samples.after[samples.found]])


def _stored(views: Tensor) -> Tensor:  # (B, C, H, W) in [0, 1] -> uint8
    return (views * 255).round().to(torch.uint8)
