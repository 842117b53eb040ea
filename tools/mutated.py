"""The kinds of files for `mutate.py`: how each is made, changed and read."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import random
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from mutations import change_bytes, change_tree
from PIL import Image
from safetensors.torch import save as to_safetensors

from distill import DistillOptions, Images, Runtime, TransferSet, distill, load_images
from distill.files import load_state, save_state, write_json
from distill.models import build_classifier, load_classifier, save_classifier
from distill.models.classifier import ModelSpec
from distill.models.weights import load_weights, read_weights
from distill.sets.transfer_set import shard_name, write_manifest, write_shard
from distill.study.cell import read_cell
from distill.study.summary import FIGURES, summarise
from distill.train import DistillResult
from inversion.cli.grammar import parse
from inversion.cli.main import main
from inversion.jobs import ShardJob, finished
from inversion.teacher_file import read_teacher
from synthesis_kernels.errors import EchosetError

SPEC = ModelSpec("convnet-4", channels=1, size=8, classes=3)
COUNT = 6


class Kind(Protocol):
    """A kind of file."""

    def change(self, chance: random.Random) -> int:
        """Write the file, changed; gives its bytes."""

    def read(self) -> bool | None:
        """Read it: whether it says what it did before, None where it may say something else."""


def run_verb(*arguments: str) -> None:
    """Run the command line; what it refuses is an error as everywhere else."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(list(arguments))
    print(said.getvalue())
    if status:
        raise EchosetError(said.getvalue())


def _shard() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(COUNT, 3, generator=chance)
    return {
        "images": torch.randint(256, (COUNT, 1, 8, 8), generator=chance, dtype=torch.uint8),
        "labels": logits.argmax(1),
        "logits": logits.half(),
        "priority": torch.rand(COUNT, generator=chance),
        "round": torch.zeros(COUNT, dtype=torch.int32),
    }


def _manifest(digest: str) -> dict[str, Any]:
    labels = _shard()["labels"]
    counts = torch.bincount(labels, minlength=3).tolist()
    shard = {"file": shard_name(0, 1), "sha256": digest, "count": COUNT, "counts": counts}
    account: dict[str, Any] = {"sources": ["noise"], "exposed": {"noise": 0.5}, "drawn": 9}
    account |= {"raw_counts": [3, 3, 3], "accepted": [3, 3, 3], "needed": [1, None, 2]}
    account |= {"taken": {"noise": counts}, "short": {"1": 2}, "missing": 2}
    account |= {"seconds": 1.0, "raw_coverage": 0.9}
    return {
        "code_version": "0",
        "method": "collect",
        "seed": 0,
        "teacher": {"model": "convnet-4", "weight_hash": "ab"},
        "config": {"images": COUNT, "balanced": False, "of": [{"collection": account}]},
        "input": {
            "channels": 1,
            "size": 8,
            "classes": 3,
            "task": "classification",
            "mean": [0.0],
            "std": [1.0],
            "class_names": ["cat", "dog", "emu"],
        },
        "counts": counts,
        "short": {"1": 2},
        "raw_counts": [3, 3, 3],
        "collection": account,
        "shards": [{**shard, "seconds": 1.0, "device": "cpu", "calls": 3}],
    }


class Manifest:
    """A set's manifest, its values changed or its bytes; the verbs that show it are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        digest = write_shard(folder / shard_name(0, 1), _shard())
        write_manifest(folder, _manifest(digest))
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
            data = change_bytes(to_safetensors(_shard()), chance)
        else:
            data = to_safetensors(_change_tensors(_shard(), chance))
        (self.folder / shard_name(0, 1)).write_bytes(data)
        told = _manifest(sha256(data).hexdigest())
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
        self.job = ShardJob(0, 1, 5, [2, 2, 2])
        digest = write_shard(folder / self.job.file, _shard())
        self.told = {**_manifest(digest)["shards"][0], "raw_counts": [1, 2, 3], "seed": 5}
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


class Cell:
    """A cell of a study."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cell.json"
        where = {"set": "a", "corruption": "none", "method": "plain", "seed": 0}
        self.told = {"key": "k", "report": "as is", "seconds": 1.0, **where}
        self.told |= dict.fromkeys(FIGURES, 0.5)
        write_json(self.path, self.told)

    def change(self, chance: random.Random) -> int:
        told = change_tree(self.told, chance)
        if isinstance(told, dict) and chance.random() < 0.8:
            told["key"] = "k"
        write_json(self.path, told)
        if chance.random() < 0.2:
            self.path.write_bytes(change_bytes(self.path.read_bytes(), chance))
        return self.path.stat().st_size

    def read(self) -> None:
        cell = read_cell(self.path, "k")
        if cell is not None:
            summarise([cell, cell])


class State:
    """The state of a stopped distillation, which then goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shard = _shard()
        self.data = Images(shard["images"], shard["labels"], "shard")
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


class Weights:
    """A checkpoint, its bytes or its tensors changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "w.pth"
        self.network = build_classifier(SPEC).network
        self.weights = self.network.state_dict()
        torch.save(self.weights, self.path)

    def change(self, chance: random.Random) -> int:
        buffer = io.BytesIO()
        if chance.random() < 0.5:
            torch.save({"state_dict": self.weights}, buffer)
            data = change_bytes(buffer.getvalue(), chance)
        else:
            nested = {"state_dict": dict(self.weights), "epoch": 3}
            torch.save(change_tree(nested, chance, with_tensors=True), buffer)
            data = buffer.getvalue()
        self.path.write_bytes(data)
        return len(data)

    def read(self) -> None:
        load_weights(copy.deepcopy(self.network), read_weights(self.path), str(self.path))


class Model:
    """A classifier's own file: what it says of itself changed, or its bytes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "net.safetensors"
        network = build_classifier(SPEC)
        images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for _ in range(30):  # running statistics as of something seen
                network.train()(images)
        network.eval()
        notes = {"views": {"shift": 0.1}, "class_names": ["a", "b", "c"], "seed": 0}
        network.spec = ModelSpec("convnet-4", {}, 1, 8, 3, notes=notes)
        save_classifier(network, self.path)
        self.data = self.path.read_bytes()

    def change(self, chance: random.Random) -> int:
        data = self.data
        if chance.random() < 0.4:
            data = change_bytes(data, chance)
        else:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            told = change_tree(json.loads(header["__metadata__"]["echoset"]), chance)
            header["__metadata__"]["echoset"] = json.dumps(told)
            text = json.dumps(header).encode()
            data = len(text).to_bytes(8, "little") + text + data[8 + length :]
        self.path.write_bytes(data)
        return len(data)

    def read(self) -> None:
        load_classifier(self.path)
        run_verb("inspect", "--teacher", str(self.path))


class Options:
    """A file of options, and one of a teacher's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "o.yaml"
        self.teacher = folder / "t.yaml"
        self.told = {
            "seed": 3,
            "out": "runs/x",
            "teacher": {"model": "mnist", "mean": [0.5], "arguments": {"a": 1}},
            "synthesis": {"batch": 20, "generator": {"width": 8}, "views": {"flip": True}},
        }
        self.path.write_text(yaml.safe_dump(self.told))
        self.teacher.write_text(yaml.safe_dump(self.told["teacher"]))

    def change(self, chance: random.Random) -> int:
        for path, told in ((self.path, self.told), (self.teacher, self.told["teacher"])):
            data = yaml.safe_dump(change_tree(told, chance)).encode()
            if chance.random() < 0.4:
                data = change_bytes(yaml.safe_dump(told).encode(), chance)
            path.write_bytes(data)
        return len(data)

    def read(self) -> None:
        with contextlib.suppress(EchosetError):
            read_teacher(self.teacher)
        parse("synthesize", ["--config", str(self.path)])


class Pixels:
    """Images in a file of one of the forms that are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
        self.labels = np.arange(4)
        self.whole = self.form()
        for name, data in self.whole.items():
            (folder / name).write_bytes(data)

    def form(self) -> dict[str, bytes]:
        """Files by their names, as they were before they were changed."""
        raise NotImplementedError

    def change(self, chance: random.Random) -> int:
        for old in self.folder.iterdir():
            old.unlink()
        made = dict(self.whole)
        name = chance.choice(list(made))
        made[name] = change_bytes(made[name], chance)
        for each, data in made.items():
            (self.folder / each).write_bytes(data)
        return sum(map(len, made.values()))

    def read(self) -> None:
        place = next(iter(self.folder.glob("*.npz")), self.folder)
        for shape in ((None, None), (1, 8)):
            data = load_images(place, "test", *shape, labelled=place != self.folder)
            assert data.images.dtype is torch.uint8
            assert data.images.ndim == 4


class Npz(Pixels):
    """NumPy's archive, packed."""

    def form(self) -> dict[str, bytes]:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=self.pixels, labels=self.labels)
        return {"d.npz": buffer.getvalue()}

    def change(self, chance: random.Random) -> int:
        if chance.random() < 0.5:
            return super().change(chance)
        name = chance.choice(("images", "labels"))
        with zipfile.ZipFile(io.BytesIO(self.whole["d.npz"])) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        head, tail = members[f"{name}.npy"][:128], members[f"{name}.npy"][128:]
        if chance.random() < 0.7:
            shape = chance.choice((b"(10000000000, ", b"(-1, ", b"(), (", b"(0, ", b"(4.0, "))
            head = head.replace(b"(4, ", shape).replace(b"|u1", chance.choice((b"|O", b"|u1")))
        else:
            head = change_bytes(head, chance)
        members[f"{name}.npy"] = head + tail
        with zipfile.ZipFile(self.folder / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for each, data in members.items():
                archive.writestr(each, data)
        return (self.folder / "d.npz").stat().st_size


class Idx(Pixels):
    """MNIST's two files, packed."""

    def form(self) -> dict[str, bytes]:
        head = bytes([0, 0, 8, 3]) + np.array([4, 8, 8], ">u4").tobytes()
        images = head + self.pixels[..., 0].tobytes()
        labels = bytes([0, 0, 8, 1]) + np.array([4], ">u4").tobytes() + bytes([0, 1, 2, 3])
        return {
            "t10k-images-idx3-ubyte.gz": gzip.compress(images),
            "t10k-labels-idx1-ubyte.gz": gzip.compress(labels),
        }

    def change(self, chance: random.Random) -> int:
        whole = self.whole
        if chance.random() < 0.5:  # within the packing
            opened = {name: gzip.decompress(data) for name, data in whole.items()}
            name = chance.choice(list(opened))
            opened[name] = change_bytes(opened[name], chance)
            self.whole = {each: gzip.compress(data) for each, data in opened.items()}
        try:
            return super().change(chance)
        finally:
            self.whole = whole


class Pictures(Pixels):
    """Pictures of the forms that are opened."""

    def form(self) -> dict[str, bytes]:
        files = {}
        for pixels, form in zip(self.pixels, ("PNG", "JPEG", "BMP", "WEBP"), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, form)
            files[f"{form}.{form.lower()}"] = buffer.getvalue()
        return files


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
