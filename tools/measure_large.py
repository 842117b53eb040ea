"""Seconds and memory of the preset `large`: calls of a synthesis, steps of a student.

    python tools/measure_large.py synthesis --network resnet18 --data /path/to/CIFAR-10
    python tools/measure_large.py student --network resnet18 --data /path/to/CIFAR-10

Options of `echoset demo` may follow, and win over the preset's.
A stage is measured in a process of its own, whose peak memory is told. The teacher is trained for a
few steps on enlarged images, so that its BatchNorm statistics are those of pictures; what it
decides is worth nothing, and neither are the images. It is kept in runs/large. All of the buffer's
memory is taken before the first call, as if it was full, and the state is saved after the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from verbs import new_parser, plain_endings, read_options

from distill.data.images import Images, load_images
from distill.data.pixels import fit_pixels
from distill.models import Classifier, ModelSpec, build_classifier, load_classifier, save_classifier
from distill.options import DistillOptions
from distill.outlook import memory_taken
from distill.runtime import Runtime
from distill.students import build_student
from distill.train import distill
from distill.update import StudentState
from inversion.cli.schema import DemoRun
from inversion.jobs import plan
from inversion.parts.matching import Matching
from inversion.parts.own import Own
from inversion.recipes.ssdkd import SSDKD
from inversion.shards import Shard
from synthesis_kernels.backend import describe_device, forward_pass, repository_commit

MEAN = (0.491, 0.482, 0.447)
STD = (0.247, 0.243, 0.262)


def teacher_for(given: argparse.Namespace) -> Classifier:
    """The teacher in runs/large, trained now if it isn't there."""
    file = Path(f"runs/large/{given.network}-{given.size}.safetensors")
    if not file.is_file():
        spec = ModelSpec(given.network, {}, 3, given.size, given.classes, mean=MEAN, std=STD)
        network = build_classifier(spec)
        train(network, load_images(given.data, "train"), given.train)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(network, file)
    return load_classifier(file).eval().requires_grad_(False)


def train(network: Classifier, data: Images, steps: int, batch: int = 16) -> None:
    """A few steps on enlarged images."""
    machine = Runtime(device="cpu").resolve()
    state = StudentState(network, machine.device, 0, DistillOptions(learning_rate=0.02))
    network.train()
    for step in range(steps):
        index = torch.randint(len(data), (batch,), generator=state.generator)
        images = fit_pixels(data.images[index], 3, network.spec.size).float() / 255
        with forward_pass(machine.device, machine.precision):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), data.labels[index])
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        state.optimiser.step()
        print(f"training {network.spec.model}: step {step + 1} of {steps}", flush=True)


def measure_synthesis(given: argparse.Namespace, demo: DemoRun) -> dict[str, Any]:
    """Calls of the recipe, each with its seconds; the first prepares much."""
    teacher = teacher_for(given)
    machine = demo.resolve()
    options = SSDKD.settle(demo.synthesis, teacher)
    job = plan(options, given.classes)[0]
    with TemporaryDirectory(dir="runs/large") as folder:
        shard = Shard(SSDKD, teacher, options, machine, Path(folder), Own(), job)
        assert isinstance(shard.recipe, Matching)
        shard.recipe.state.buffer.images.fill_(128)
        results = []
        for call in range(given.count):
            results += shard.step()
            told = f"call {call + 1} of {given.count}: {results[-1].notes['seconds']:.1f} s"
            print(f"{told}, at most {_gibibytes()} GiB", flush=True)
        shard.save(Path(folder) / "state", "measured")
    seconds = [result.notes["seconds"] for result in results]
    # The adversary counts after so many calls, and a call takes longer then.
    settled = seconds[options.objective.adversary_after + 1 :] or seconds[-1:]
    making = [result.notes["generator_seconds"] for result in results][-len(settled) :]
    return {
        "images": options.images,
        "batch": options.batch,
        "calls": options.calls,
        "each": statistics.median(settled),
        "of_that_generator": statistics.median(making),
        "spread": [min(settled), max(settled)],
    }


def measure_student(given: argparse.Namespace, demo: DemoRun) -> dict[str, Any]:
    """Steps of the student on as many images as the set has; the images show nothing."""
    teacher = teacher_for(given)
    size = given.size
    pixels = torch.randint(256, (demo.synthesis.images, 3, size, size), dtype=torch.uint8)
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    student = build_student(demo.student, teacher.contract)
    began = time.perf_counter()
    options = replace(demo.distillation, steps=given.count)
    distill(student, Images(pixels, labels, "noise"), teacher, options, runtime=demo)
    spent = time.perf_counter() - began
    return {
        "student": demo.student.model,
        "batch": demo.distillation.batch,
        "steps": demo.distillation.steps,
        "each": spent / given.count,
    }


def _gibibytes() -> float:
    """Most memory that this process has held."""
    return round((memory_taken() or 0) / 2**30, 2)


PRESET = ("--preset=large", "--quiet")
STAGES = {"synthesis": measure_synthesis, "student": measure_student}


def main() -> None:
    """Measure a stage, and print a line of JSON."""
    parser = new_parser(__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--network", default="resnet18", help="a name of torchvision's")
    parser.add_argument("--data", required=True, help="images to train the teacher on")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--train", type=int, default=40, help="steps of the teacher")
    parser.add_argument("--count", type=int, default=20, help="calls or steps measured")
    given, flags = parser.parse_known_args()
    with plain_endings():
        demo = read_options(DemoRun, "demo", [*PRESET, *flags])
        figures = STAGES[given.stage](given, demo)
        told = {"network": given.network, "size": given.size, "classes": given.classes}
        machine = {"device": describe_device(demo.resolve_device()), "torch": torch.__version__}
        peak = {"peak_gib": _gibibytes(), "commit": repository_commit()}
        print(json.dumps(told | {"stage": given.stage} | figures | peak | machine))


if __name__ == "__main__":
    main()
