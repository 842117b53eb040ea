"""Files changed a little, at random: their bytes, or the values in them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch

ODD: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 2**64,
    lambda: 10**400,
    lambda: 1e308,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "x" * 3000,
    lambda: "a\0b",
    lambda: "\x1b[31mred\x1b]0;title\x07\u202e",
    lambda: "../../etc/passwd",
    lambda: "<script>alert(1)</script>",
    lambda: [],
    lambda: {},
    lambda: [[[[]]]],
    lambda: {"class_path": "os.system", "init_args": {"command": "false"}},
    lambda: [0] * 5000,
    lambda: {"short": 3, "counts": None},
    lambda: 1_000_000,
    lambda: 8192,
)
"""Values that hardly anybody writes where others belong."""
TENSORS: tuple[Callable[[], Any], ...] = (
    lambda: torch.zeros(0),
    lambda: torch.full((2, 2), float("nan")),
    lambda: torch.zeros(3, dtype=torch.int64),
    lambda: torch.eye(3).to_sparse(),
    lambda: torch.empty(3, 3, device="meta"),
    lambda: torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8),
    lambda: torch.zeros(1).expand(100_000_000),
    lambda: torch.zeros(2, dtype=torch.complex64),
)
"""The same of tensors."""


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut, doubled, put in or zeroed."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(made) + 1)
        length = chance.choice((1, 1, 4, 64))
        way = chance.randrange(6)
        if way == 0 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            made[at : at + length] = chance.randbytes(length)
        elif way == 2:
            del made[at : at + length]
        elif way == 3:
            made[at:at] = made[at : at + length] * chance.choice((1, 100))
        elif way == 4:
            made[at : at + length] = bytes([chance.choice((0, 255))]) * length
        else:
            del made[at:]
    return bytes(made)


def change_tree(tree: Any, chance: random.Random, with_tensors: bool = False) -> Any:
    """A copy of nested mappings and lists in which some values are others, gone or twice there."""
    made = copy.deepcopy(tree)
    for _ in range(chance.choice((1, 1, 1, 3))):
        holder = _pick(made, chance)
        if holder is None:
            return chance.choice(ODD)()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = chance.choice(keys)
        way = chance.randrange(8)
        if way == 0:
            del holder[key]
        elif way == 1:
            holder[key] = holder[chance.choice(keys)]
        elif way == 2 and isinstance(holder, list):
            holder.append(holder[key])
        elif way == 3 and isinstance(holder[key], int | float) and abs(holder[key]) < 1e100:
            holder[key] = type(holder[key])(holder[key] * 2 + 1)
        else:
            odd = chance.choice((ODD, TENSORS)) if with_tensors else ODD
            holder[key] = chance.choice(odd)()
    return made


def _pick(tree: Any, chance: random.Random) -> Any:
    """One of the mappings and lists that hold something."""
    holders: list[Any] = []
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and value:
            holders.append(value)
            waiting += value.values() if isinstance(value, dict) else value
    return chance.choice(holders) if holders else None
