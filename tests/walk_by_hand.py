"""A collection by hand, one image after another: what `collect` has to come to."""

import math
from dataclasses import replace

import numpy as np
import torch
from collecting import answers_of

from inversion.sources.stream import BLOCK, open_source


class Walk:
    """What was kept of the linear teacher's four classes, and what was seen."""

    def __init__(self, options):
        self.options = options
        self.quotas = [len(range(label, options.images, 4)) for label in range(4)]
        self.kept = [[] for _ in self.quotas]
        self.order = []
        self.raw = [0] * 4
        self.accepted = [0] * 4
        self.needed = [None] * 4
        self.taken = {}

    def is_full(self, label):
        return len(self.kept[label]) == self.quotas[label]

    def has_enough(self):
        if not self.options.balanced:
            return len(self.order) == self.options.images
        return all(self.is_full(label) for label in self.options.only or range(4))

    def accepts(self, logits, label):
        """Whether an answer lies in the window."""
        odds = np.exp(logits - logits.max())
        first, second = sorted(odds / odds.sum())[:-3:-1]
        low, high = self.options.confidence
        least, most = self.options.margin
        if self.options.only and label not in self.options.only:
            return False
        return low <= first <= high and least <= first - second <= most

    def see(self, image, logits, address):
        label = int(logits.argmax())
        self.raw[label] += 1
        if not self.accepts(logits, label):
            return
        self.accepted[label] += 1
        has_room = not self.is_full(label)
        if not self.options.balanced:
            has_room = len(self.order) < self.options.images
        if has_room:
            self.kept[label].append(image)
            self.order.append(image)
            self.taken.setdefault(address, [0] * 4)[label] += 1

    def end_block(self):
        for label in range(4):
            if self.options.balanced and self.needed[label] is None and self.is_full(label):
                self.needed[label] = sum(self.raw)

    def images(self):
        if not self.options.balanced:
            return torch.stack(self.order)
        in_turn = []
        for place in range(max(self.quotas)):
            in_turn += [images[place] for images in self.kept if place < len(images)]
        return torch.stack(in_turn)

    def account(self):
        short = {}
        for label in range(4):
            if self.options.balanced and not self.is_full(label):
                short[str(label)] = self.quotas[label] - len(self.kept[label])
        return {
            "drawn": sum(self.raw),
            "raw_counts": self.raw,
            "accepted": self.accepted,
            "needed": self.needed,
            "taken": self.taken,
            "short": short,
            "missing": self.options.images - len(self.order),
        }


def naive_walk(teacher, addresses, options, seed=0):
    """The images, and the account of them."""
    walk = Walk(options)
    most = math.ceil(options.draws * options.images / BLOCK)
    for address in addresses:
        source = replace(open_source(address, 1, 12, seed), exposed=options.expose)
        for number in range(min(most, source.blocks or most)):
            if walk.has_enough():
                break
            images = source.block(number)
            for image, logits in zip(images, answers_of(teacher, images), strict=True):
                walk.see(image, logits, address)
            walk.end_block()
    return walk.images(), walk.account()
