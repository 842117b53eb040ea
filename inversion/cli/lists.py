"""What there is to choose from, by kind, with a sentence each. No torch here: docstrings are read
from the source, as text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from distill.methods import METHODS
from inversion.recipes import RECIPES
from inversion.sources import DRAWN

Rows = dict[str, str]
"""Sentences by name."""

BUNDLED = {
    "mnist": "digits, 28×28 grey; comes with echoset (convnet-32)",
    "cifar10": "photographs of 10 kinds, 32×32; comes with echoset (wrn-40-2)",
    "cifar10-small": "the same, by a small network; comes with echoset (convnet-32)",
    "cifar10-gn": "the same, by a ResNet with GroupNorm; comes with echoset (resnet-gn-16)",
    "cifar10-vit": "the same, by a vision transformer; comes with echoset (vit-96x3)",
    "camvid": "street scenes, 96×128, a class a pixel of 11; comes with echoset (unet-16)",
}
ZOO = {
    "lenet5": "LeNet-5 with BatchNorm",
    "convnet-<width>": "six 3×3 convolutions, such as convnet-32",
    "convnet-gn-<width>": "the same with GroupNorm; the width is a multiple of 4",
    "resnet-gn-<width>": "a small ResNet with GroupNorm; the width is a multiple of 4",
    "vit-<width>x<depth>": "a vision transformer for 32×32 images; the width is a multiple of 32",
    "unet-<width>": "a U-Net with BatchNorm, for segmentation, such as unet-16",
    "wrn-<depth>-<widen>": "wide residual networks, such as wrn-40-2",
    "cifar-resnet18": "ResNet-18 with a stem for 32×32 images",
    "cifar-resnet34": "ResNet-34 with a stem for 32×32 images",
    "cifar-vgg11": "VGG-11 for 32×32 images",
    "cifar-mobilenetv2": "MobileNetV2 for 32×32 images",
}
ELSEWHERE = {
    "resnet18, …": "any classifier or segmentation network of torchvision, by its name",
    "timm:NAME": "any network of timm (extra timm)",
    "hf:NAME": "any image classifier or segmentation network of transformers (extra hf)",
    "package.module.Net": "your own class or function; its code is run",
}
STORED = {
    "DIR": "a transfer set, or a folder of pictures",
    "FILE.npz": "a file with arrays of images",
    "torchvision:NAME:ROOT": "a data set of torchvision",
}
VARIANTS = {"rkd-d": "The distances of rkd alone.", "rkd-a": "The angles of rkd alone."}
"""Methods that share another's file."""
PRESETS = Path(__file__).parent.parent / "presets"


def teachers() -> Rows:
    """Networks that come trained, and how others are named."""
    return BUNDLED | {
        "FILE.safetensors": "a file that echoset saved",
        "NAME": "any of the students' names, with --teacher.weights FILE",
        "timm:NAME": "any network of timm (extra timm), with its own weights or yours",
        "hf:NAME, hf:DIR": "any of Hugging Face's transformers (extra hf), with its own weights",
        "FILE.yaml": "a file with a teacher's options",
        "SET": "the teacher that made the transfer set in that folder",
        "FILE.pt2": "a program that torch.export saved",
        "FILE.pt": "a script that torch.jit.save saved",
    }


def students() -> Rows:
    """Networks by name."""
    return ZOO | ELSEWHERE


def recipes() -> Rows:
    """Ways to train a generator."""
    return {name: _class_says(*place.split(":")) for name, place in RECIPES.items()}


def sources() -> Rows:
    """Images that need no generator."""
    drawn = {}
    for name, place in DRAWN.items():
        module, _, kind = place.partition(":")
        drawn[name] = _class_says(f"inversion.sources.{module}", kind)
    return drawn | STORED


def methods() -> Rows:
    """Losses of a distillation."""
    rows = {}
    for name, place in METHODS.items():
        if name in VARIANTS:
            rows[name] = VARIANTS[name]
            continue
        module = f"distill.methods.{place.partition('.')[0]}"
        rows[name] = _first_paragraph(_read(module))
    return rows


def presets() -> Rows:
    """Files of options that come with echoset."""
    rows = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = [line[1:].strip() for line in lines[:3] if line.startswith("#")]
        rows[path.stem] = re.split(r"(?<=\.) ", " ".join(comment))[0]
    return rows


LISTS: dict[str, Callable[[], Rows]] = {
    "teachers": teachers,
    "students": students,
    "recipes": recipes,
    "sources": sources,
    "methods": methods,
    "presets": presets,
}
"""Every list, by what it is called."""


def _class_says(module: str, name: str) -> str:
    for node in _read(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _first_paragraph(node)
    return ""


def _first_paragraph(node: ast.Module | ast.ClassDef) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def _read(module: str) -> ast.Module:
    """A module's source, which is not imported."""
    spec = find_spec(module)
    origin = spec.origin if spec else None
    if origin is None:
        return ast.Module([], [])
    return ast.parse(Path(origin).read_text(encoding="utf-8"))
