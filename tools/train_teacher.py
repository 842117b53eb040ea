"""Train a network of the zoo on real images, and save it with its recipe, seed and accuracy.

The bundled MNIST teacher was made by

    python tools/train_teacher.py --data /path/to/MNIST --out
    inversion/assets/mnist_convnet32.safetensors

at commit 4b9e0fa; now the same command makes one like it, with other random numbers.
`configs/teachers/` holds the recipes of others. Images and labels stay on the device. The test set
is asked once, after the last step. A stopped run goes on when the same command is given again.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import torch.nn.functional as F
from results import write_json

from distill.data.augment import make_views
from distill.data.images import Images, content_hash, fit_pixels, load_images
from distill.evaluation import check_fit, evaluate
from distill.files import load_state, save_state
from distill.loop import Every, StepProgress, StopFlag
from distill.models import Classifier, ModelSpec, build_classifier, save_classifier
from distill.options import DistillOptions, ViewOptions
from distill.runtime import Device, Precision, Runtime
from distill.update import StudentState, one_cycle
from synthesis_kernels.backend import (
    describe_device,
    forward_pass,
    repository_commit,
    resolve_device,
    resolve_precision,
)
from synthesis_kernels.errors import EchosetError

STAGES = 4
"""Sizes below the full one that a recipe with `small` goes through."""


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is trained."""

    data: str
    """Folder or .npz file with a train and a test split."""
    out: str
    """The safetensors file to write."""
    record: str = ""
    """A result file, such as configs/results/teachers.json, that shall list this teacher too."""
    model: str = "convnet-32"
    """Zoo name."""
    mean: tuple[float, ...] = (0.1307,)
    """Of the normaliser."""
    std: tuple[float, ...] = (0.3081,)
    """Of the normaliser."""
    channels: int = 3
    """Of the images, 1 or 3, where `size` is given."""
    size: int = 0
    """Resize all images to squares of this side: for folders of pictures; 0 = they are squares of
    one size as they are.
    """
    epochs: int = 12
    """Passes over the training images."""
    small: float = 0.0
    """Part of the steps in which images are shown smaller: from half their side upwards in four
    equal stages.
    """
    batch: int = 256
    """Images in an update."""
    learning_rate: float = 0.05
    """Peak of Muon's one-cycle schedule."""
    weight_decay: float = 5e-4
    """Of weights of two dimensions and more. Before BatchNorm it sets how far a step turns a
    weight: with too little of it the weights outgrow their steps.
    """
    views: ViewOptions = ViewOptions()
    """Augmentation, without mixup and cutmix: the labels stay as they are."""
    half: bool = False
    """Store matrices and convolutions in 16 bits; the accuracy is then that of the stored
    weights.
    """
    compile: bool = False
    """Compile the network, again for each size of the images: for runs of an hour and more, and for
    GPUs.
    """
    seed: int = 0
    """Fixes the result."""
    device: Device = "auto"
    """Where to train."""
    precision: Precision = "auto"
    """Of matrix products."""


def side_at(progress: float, side: int, small: float) -> int:
    """The side of the images shown when this part of the steps, in [0, 1), is done."""
    stage = int(progress / small * STAGES) if small else STAGES
    return side if stage >= STAGES else round(side * (1 + stage / STAGES) / 2)


def prepare(recipe: TeacherRecipe) -> tuple[Classifier, Images, Images]:
    """The network before its first step, and training and test images; what does not fit is refused
    now and not at the end.
    """
    if recipe.size and recipe.channels not in (1, 3):
        raise SystemExit(f"channels must be 1 or 3 where size is given, got {recipe.channels}")
    fit = (recipe.channels, recipe.size) if recipe.size else (None, None)
    data, test = (load_images(recipe.data, split, *fit, quiet=False) for split in ("train", "test"))
    if content_hash(data.images, None) == content_hash(test.images, None):
        raise SystemExit(
            f"{recipe.data} has no test images of its own, so no accuracy could be told; split it "
            "into train and test"
        )
    if not 0 <= recipe.small <= 1 or not 1 <= recipe.batch <= len(data) or recipe.epochs < 1:
        raise SystemExit(
            f"small lies in [0, 1], batch in [1, {len(data)}] (the images), epochs from 1 on; got "
            f"{recipe}"
        )
    if recipe.views.mixup or recipe.views.cutmix:
        raise SystemExit(
            "views.mixup and views.cutmix blend images, and labels stay as they are: leave both "
            "at 0"
        )
    if data.labels is None:
        raise SystemExit(f"{data.name} has no labels to learn from")
    (_, channels, size, width), classes = data.images.shape, int(data.labels.max()) + 1
    if size != width:
        raise SystemExit(
            f"{data.name} has images of {width} × {size} pixels, and networks here take squares: "
            "give --size"
        )
    spec = ModelSpec(
        recipe.model,
        channels=channels,
        size=size,
        classes=classes,
        mean=recipe.mean,
        std=recipe.std,
    )
    student = build_classifier(spec, recipe.seed)
    for split in (data, test):
        check_fit(student, split)
    student.check_forward()
    return student, data, test


def train(recipe: TeacherRecipe) -> float:
    """Train, save, and return the test accuracy."""
    device = resolve_device(recipe.device)
    precision = resolve_precision(device, recipe.precision)
    student, data, test = prepare(recipe)
    spec, size = student.spec, student.spec.size
    images, labels = data.images.to(device), data.labels.to(device)
    options = DistillOptions(learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    state = StudentState(student, device, recipe.seed, options)
    left_out = ("data", "out", "record", "device", *(() if recipe.size else ("size", "channels")))
    settings = {name: value for name, value in asdict(recipe).items() if name not in left_out}
    job = json.dumps([settings, content_hash(images, labels), device.type, str(precision)])
    key, state_file = sha256(job.encode()).hexdigest(), Path(recipe.out + ".state")
    order = torch.empty(0)
    if (saved := load_state(state_file, key)) is not None:
        state.load_state_dict(saved["student"])
        order = saved["order"].to(device)
    per_epoch = len(images) // recipe.batch
    total, shown, save_due = recipe.epochs * per_epoch, images, Every(60)
    state.student.train()
    network = torch.compile(state.student, dynamic=False) if recipe.compile else state.student
    with (
        StopFlag() as stop,
        StepProgress(f"training {recipe.model}", total, start=state.step) as progress,
    ):
        while state.step < total:
            began = time.perf_counter()
            epoch, place = divmod(state.step, per_epoch)
            if place == 0:
                order = torch.randperm(len(images), generator=state.generator, device=device)
            if (side := side_at(state.step / total, size, recipe.small)) != shown.shape[-1]:
                shown = fit_pixels(images, spec.channels, side)
            index = order[place * recipe.batch : (place + 1) * recipe.batch]
            state.optimiser.set_share(one_cycle(state.step, total, warmup=0.2))
            with forward_pass(device, precision):
                logits = network(
                    make_views(
                        shown, index, torch.full_like(index, epoch), recipe.views, recipe.seed
                    )
                )
            loss = F.cross_entropy(logits.float(), labels[index])
            state.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            state.optimiser.step()
            state.step += 1
            if state.step % 25 == 0 or state.step == total:
                if not math.isfinite(figure := loss.item()):
                    state_file.unlink(missing_ok=True)  # nobody can go on from there
                    raise SystemExit(
                        f"the loss is {figure} at step {state.step}; lower the learning rate"
                    )
                progress.update(state.step, f"loss {figure:.4f}, {side} pixels")
            stopping = stop.raised and state.step < total
            saving = stopping or save_due()
            if device.type == "cuda" and (saving or state.step == total):
                torch.cuda.synchronize()  # steps that were only asked for count, too
            state.seconds += time.perf_counter() - began
            if saving:
                save_state(state_file, key, {"student": state.state_dict(), "order": order})
            if stopping:
                raise SystemExit(f"stopped after {state.step} steps; {state_file} keeps them")
    if recipe.half:
        for parameter in state.student.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.half().float()
    accuracy = evaluate(state.student, test, runtime=Runtime(device=device.type)).accuracy
    notes = {
        "recipe": "tools/train_teacher.py",
        **settings,
        "accuracy": accuracy,
        "device": describe_device(device),
    }
    state.student.spec = replace(spec, notes=notes)
    save_classifier(state.student.cpu(), recipe.out, recipe.half)
    if recipe.record:
        figures = {
            "parameters": state.student.parameters_count,
            "seconds": round(state.seconds),
            "recipe": settings,
        }
        figures |= {"accuracy": accuracy, "device": describe_device(device)}
        record(Path(recipe.record), Path(recipe.out), figures)
    state_file.unlink(missing_ok=True)
    size_and_time = f"{state.student.parameters_count:,} parameters, {state.seconds:.0f} s"
    print(f"{recipe.out}: {accuracy:.2%} on the test set, {size_and_time}")
    return accuracy


def record(results: Path, file: Path, figures: dict[str, Any]) -> None:
    """List the teacher saved as `file` among the others in `results`, in place of one of the same
    name.
    """
    found = json.loads(results.read_text()) if results.is_file() else {"teachers": []}
    others = [entry for entry in found["teachers"] if entry["name"] != file.stem]
    entry = {
        "name": file.stem,
        "file": file.as_posix(),
        "sha256": sha256(file.read_bytes()).hexdigest(),
        **figures,
    }
    commit = repository_commit()
    found["command"] = (
        "python tools/train_teacher.py --config configs/teachers/NAME.yaml --data DIR --out FILE "
        f"--record {results}"
    )
    entry |= (where := {"commit": commit, "device": figures["device"], "torch": torch.__version__})
    found |= where
    found["teachers"] = sorted([*others, entry], key=lambda entry: entry["name"])
    write_json(results, found)


if __name__ == "__main__":
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description="Train a teacher on real images.")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TeacherRecipe, as_group=False)
    values = vars(parser.instantiate(parser.parse_args()))
    values.pop("config")
    try:
        train(TeacherRecipe(**values))
    except EchosetError as error:
        raise SystemExit(str(error)) from error
