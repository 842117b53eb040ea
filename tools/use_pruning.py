"""Prune a network, and let the original teach it again: by a set, real images, shaders or noise.

    python tools/use_pruning.py --teacher cifar10-small --set runs/set --data cifar10.npz \
        --out configs/results/uses-pruning.json

The smallest weights of all convolutions and linear layers together become zero, and stay so. The
original is the teacher; labels of real images are not used. The test part judges, after the last
step.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from uses import Record, accuracy, draw, load_split, spread_over, use_parser
from verbs import plain_endings

from distill import Classifier, DistillOptions, Images, Runtime, TransferSet, ViewOptions, distill
from inversion import TeacherOptions, load_teacher
from synthesis_kernels.backend import keep_freed_memory, kernel_form

VIEWS = {
    "mnist": ViewOptions(rotate=12, scale=0.1, shift=0.1, flip=False, cutmix=0.5),
    "photos": ViewOptions(rotate=0, scale=0, shift=0.125, flip=True, cutmix=0.5),
}
"""How images are changed while the network learns again: those of the presets."""


def prune_weights(teacher: Classifier, part: float) -> Classifier:
    """A copy whose smallest weights, `part` of all, are held at zero."""
    # Pruning flattens weights, which channels that come last forbid.
    pruned = copy.deepcopy(teacher).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    layers = [
        (layer, "weight") for layer in pruned.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=part)
    return pruned.requires_grad_(True)


def recover(teacher: Classifier, part: float, images: Tensor, steps: int, seed: int) -> Classifier:
    """The pruned network, taught by the original's answers and features on the images."""
    views = VIEWS["mnist" if teacher.spec.channels == 1 else "photos"]
    options = DistillOptions(
        loss={"hinton": 1, "hints": 20},
        steps=steps,
        batch=64,
        learning_rate=0.02,
        views_per_image=4,
        views=views,
    )
    pruned = prune_weights(teacher, part)
    lesson = Images(images, None, "the images")
    runtime = Runtime(seed=seed, device="cpu", precision="float32", quiet=True)
    return distill(pruned, lesson, teacher, options, runtime=runtime).student


def run(given: Any) -> None:
    """Measure the pruned network as it is, and after it has learnt from each kind of images."""
    teacher = load_teacher(TeacherOptions(given.teacher)).eval()
    made = TransferSet.load(given.set)
    train = load_split(given.data, "train", teacher)
    test = spread_over(load_split(given.data, "test", teacher), given.test)
    record = Record(given.out, {given.data: "DATA", given.set: "SET"})
    case = f"{given.part:.0%} of the weights pruned"
    who = {
        "network": Path(given.teacher).stem,
        "case": case,
        "set_size": given.images,
        "steps": given.steps,
    }

    def judge(network: Classifier) -> float:
        with kernel_form("reference"):
            return accuracy(network.eval(), test)

    def after(kind: str, seed: int) -> float:
        images = draw(kind, given.images, seed, teacher, made, train)
        return judge(recover(teacher, given.part, images, given.steps, seed))

    whole = {**who, "case": "not pruned", "images": "none", "seed": 0}
    record.measure(whole, lambda: judge(teacher))
    record.measure(
        {**who, "images": "none", "seed": 0}, lambda: judge(prune_weights(teacher, given.part))
    )
    for seed in given.seeds:
        for kind in given.kinds:
            record.measure({**who, "images": kind, "seed": seed}, partial(after, kind, seed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = use_parser(__doc__)
    parser.set_defaults(images=2000)
    parser.add_argument("--teacher", default="cifar10-small", help="the network to prune")
    parser.add_argument("--set", required=True, help="a transfer set that was made from it")
    parser.add_argument("--part", type=float, default=0.9, help="of the weights, made zero")
    parser.add_argument("--steps", type=int, default=400, help="in which it learns again")
    keep_freed_memory()
    with plain_endings():
        run(parser.parse_args())
