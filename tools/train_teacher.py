"""Train a network of the zoo on real images, and save it with its recipe, seed and accuracy.

The bundled teacher was made by

    python tools/train_teacher.py --data /path/to/MNIST --out inversion/assets/mnist_convnet32.safetensors

and the same command makes it again. The test set is read once, after the last epoch. A stopped run goes on when the
same command is given again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import jsonargparse
import torch
import torch.nn.functional as F

from distill.augment import make_views
from distill.data import load_images
from distill.evaluation import evaluate
from distill.files import load_state, save_state
from distill.loop import StepProgress, StopFlag
from distill.models import ModelSpec, build_classifier, save_classifier
from distill.options import Device, Precision, ViewOptions
from distill.train import StudentState, one_cycle
from synthesis_kernels.backend import describe_device, mixed_precision, resolve_device, resolve_precision


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is trained."""

    data: str
    """Folder or .npz file with a train and a test split."""
    out: str
    """The safetensors file to write."""
    model: str = "convnet-32"
    """Zoo name."""
    mean: tuple[float, ...] = (0.1307,)
    """Of the normaliser."""
    std: tuple[float, ...] = (0.3081,)
    """Of the normaliser."""
    epochs: int = 12
    """Passes over the training images."""
    batch: int = 256
    """Images in an update."""
    learning_rate: float = 0.05
    """Peak of Muon's one-cycle schedule."""
    views: ViewOptions = ViewOptions()
    """Augmentation."""
    seed: int = 0
    """Fixes the result."""
    device: Device = "auto"
    """Where to train."""
    precision: Precision = "auto"
    """Of matrix products."""


def train(recipe: TeacherRecipe) -> float:
    """Train, save, and return the test accuracy."""
    device = resolve_device(recipe.device)
    precision = resolve_precision(device, recipe.precision)
    data = load_images(recipe.data, "train")
    images, labels = data.images.to(device), data.labels.to(device)
    channels, size, classes = images.shape[1], images.shape[2], int(labels.max()) + 1
    spec = ModelSpec(recipe.model, channels=channels, size=size, classes=classes, mean=recipe.mean, std=recipe.std)
    state = StudentState(build_classifier(spec, recipe.seed), recipe.learning_rate, device, recipe.seed)
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("data", "out", "device")}
    key, state_file = sha256(json.dumps(settings).encode()).hexdigest(), Path(recipe.out + ".state")
    if (saved := load_state(state_file, key)) is not None:
        state.load_state_dict(saved)
    per_epoch = len(images) // recipe.batch
    total, began = recipe.epochs * per_epoch, time.perf_counter()
    state.student.train()
    with StopFlag() as stop, StepProgress(f"training {recipe.model}", total, start=state.step) as progress:
        while state.step < total:
            order = torch.randperm(len(images), generator=state.generator, device=device)
            for index in order[: per_epoch * recipe.batch].view(per_epoch, -1):
                state.optimiser.set_share(one_cycle(state.step, total, warmup=0.2))
                epoch = torch.full_like(index, state.step // per_epoch)
                with mixed_precision(device, precision):
                    logits = state.student(make_views(images, index, epoch, recipe.views, recipe.seed))
                loss = F.cross_entropy(logits.float(), labels[index])
                state.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                state.optimiser.step()
                state.step += 1
                if state.step % 25 == 0:
                    progress.update(state.step, f"loss {loss.item():.4f}")
            save_state(state_file, key, state.state_dict())
            if stop.raised and state.step < total:
                raise SystemExit(f"stopped after {state.step} steps; {state_file} keeps them")
    accuracy = evaluate(state.student, load_images(recipe.data, "test"), device=device.type).accuracy
    notes = {"recipe": "tools/train_teacher.py", **settings, "accuracy": accuracy, "device": describe_device(device)}
    state.student.spec = replace(spec, notes=notes)
    save_classifier(state.student.cpu(), recipe.out)
    state_file.unlink(missing_ok=True)
    size_and_time = f"{state.student.parameters_count:,} parameters, {time.perf_counter() - began:.0f} s"
    print(f"{recipe.out}: {accuracy:.2%} on the test set, {size_and_time}")
    return accuracy


if __name__ == "__main__":
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description="Train a teacher on real images.")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TeacherRecipe, as_group=False)
    values = vars(parser.instantiate(parser.parse_args()))
    values.pop("config")
    train(TeacherRecipe(**values))
