"""Networks, weights and files of options for `mutate.py`."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from pathlib import Path

import torch
import yaml
from mutated_common import SPEC, run_verb
from mutations import change_bytes, change_tree

from distill.models import build_classifier, load_classifier, save_classifier
from distill.models.classifier import ModelSpec
from distill.models.weights import load_weights, read_weights
from inversion.cli.grammar import parse
from inversion.teacher_file import read_teacher
from synthesis_kernels.errors import EchosetError


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
            told = json.loads(header["__metadata__"]["echoset"])
            told.pop("checksum")
            header["__metadata__"]["echoset"] = json.dumps(change_tree(told, chance))
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
