"""The kinds of files for `mutate.py`: how each is made, changed and read."""

from __future__ import annotations

from collections.abc import Mapping

from mutated_common import Kind
from mutated_networks import Model, Options, Weights
from mutated_pixels import Idx, Npz, Pictures
from mutated_sets import Cell, Manifest, Note, Shard, State

KINDS: Mapping[str, type[Kind]] = {
    "manifest": Manifest,
    "shard": Shard,
    "note": Note,
    "cell": Cell,
    "state": State,
    "weights": Weights,
    "model": Model,
    "options": Options,
    "npz": Npz,
    "idx": Idx,
    "pictures": Pictures,
}
"""Every kind of file that is changed, by its name."""
