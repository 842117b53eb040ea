"""Sets, notes, cells of studies and states for `mutate.py`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from mutated_common import SPEC, run_verb, some_manifest, some_tensors
from mutations import change_bytes, change_tree
from safetensors.torch import save as to_safetensors

from distill import DistillOptions, Images, Runtime, TransferSet, distill
from distill.files import load_state, save_state, write_json
from distill.models import build_classifier
from distill.result import DistillResult
from distill.sets.shards import shard_name, write_shard
from distill.sets.transfer_set import write_manifest
from distill.study.cell import MADE_WITH, read_cell
from distill.study.origin import Origin
from distill.study.summary import FIGURES, summarise
from inversion.jobs import ShardJob, finished


class Manifest:
    """A set's manifest, its values changed or its bytes; the verbs that show it are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        digest = write_shard(folder / shard_name(0, 1), some_tensors())
        write_manifest(folder, some_manifest(digest))
        self.path = folder / "manifest.json"
        self.data = self.path.read_bytes()
        self.verb = "verify"

    def change(self, chance: random.Random) -> int:
        if chance.random() < 0.3:
            data = change_bytes(self.data, chance)
        else:
            told = json.loads(self.data)
            told.pop("checksum", None)
            data = json.dumps(change_tree(told, chance)).encode()
        self.path.write_bytes(data)
        self.verb = "report" if chance.random() < 0.05 else "verify"
        return len(data)

    def read(self) -> None:
        TransferSet.load(self.folder)
        word = "--set" if self.verb == "verify" else "--run"
        run_verb(self.verb, f"{word}={self.folder}")


class Shard(Manifest):
    """A set's shard of which the manifest has the hash."""

    def change(self, chance: random.Random) -> int:
        self.verb = "verify"
        if chance.random() < 0.5:
            data = change_bytes(to_safetensors(some_tensors()), chance)
        else:
            data = to_safetensors(_change_tensors(some_tensors(), chance))
        (self.folder / shard_name(0, 1)).write_bytes(data)
        told = some_manifest(sha256(data).hexdigest())
        self.path.write_text(json.dumps({"format_version": 1, **told}))
        return len(data)


def _change_tensors(
    tensors: Mapping[str, torch.Tensor], chance: random.Random
) -> dict[str, torch.Tensor]:
    """One of the tensors of another shape, type or content, or none."""
    made = dict(tensors)
    name = chance.choice(list(made))
    tensor = made.pop(name)
    changed = [
        tensor[:1],
        tensor[None],
        tensor.double(),
        (tensor.float() * float("nan")).to(tensor.dtype),
        tensor.flip(0).contiguous(),
        tensor - 100,
        None,
    ]
    value = chance.choice(changed)
    return made if value is None else made | {name: value.contiguous()}


class Note:
    """The note of a finished shard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = ShardJob(0, 1, 5, [2, 2, 2], 6)
        digest = write_shard(folder / self.job.file, some_tensors())
        self.told = {**some_manifest(digest)["shards"][0], "raw_counts": [1, 2, 3], "seed": 5}
        (folder / f".{self.job.file}.done").write_text(json.dumps(self.told))

    def change(self, chance: random.Random) -> int:
        data = json.dumps(self.told).encode()
        if chance.random() < 0.3:
            data = change_bytes(data, chance)
        else:
            data = json.dumps(change_tree(self.told, chance)).encode()
        (self.folder / f".{self.job.file}.done").write_bytes(data)
        return len(data)

    def read(self) -> None:
        note = finished(self.folder, self.job, check=True)
        if note is not None:
            sum(note["counts"])
            sum(note.get("raw_counts", []))


ORIGIN = Origin({"distillation": {"steps": 3}}, {"test data": "0" * 64})


class Cell:
    """A cell of a study."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cell.json"
        where = {"set": "a", "corruption": "none", "method": "plain", "seed": 0}
        self.told = {
            "key": ORIGIN.key,
            MADE_WITH: ORIGIN.document,
            "report": "as is",
            "seconds": 1.0,
            **where,
        }
        self.told |= dict.fromkeys(FIGURES, 0.5)
        write_json(self.path, self.told)

    def change(self, chance: random.Random) -> int:
        told = change_tree(self.told, chance)
        if isinstance(told, dict) and chance.random() < 0.8:
            told["key"] = ORIGIN.key
        write_json(self.path, told)
        if chance.random() < 0.2:
            self.path.write_bytes(change_bytes(self.path.read_bytes(), chance))
        return self.path.stat().st_size

    def read(self) -> None:
        cell = read_cell(self.path, ORIGIN)
        if cell is not None:
            summarise([cell, cell])


class State:
    """The state of a stopped distillation, which then goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tensors = some_tensors()
        self.data = Images(tensors["images"], tensors["labels"], "shard")
        self.options = DistillOptions(
            loss={"labels": 1.0}, labels="data", steps=2, batch=2, optimiser="sgd"
        )
        self.key = self._distill().key
        self.path = folder / "student.state"
        self.whole = self.path.read_bytes()

    def _distill(self) -> DistillResult:
        student = build_classifier(SPEC)
        runtime = Runtime(device="cpu", precision="float32", quiet=True, kernels="reference")
        return distill(student, self.data, None, self.options, self.folder, runtime)

    def change(self, chance: random.Random) -> int:
        self.path.write_bytes(self.whole)
        if chance.random() < 0.3:
            self.path.write_bytes(change_bytes(self.whole, chance))
        else:
            state = load_state(self.path, self.key)
            save_state(self.path, self.key, change_tree(state, chance, with_tensors=True))
        return self.path.stat().st_size

    def read(self) -> None:
        self._distill()
