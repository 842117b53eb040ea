"""Train a network on real images, and save it with its recipe, seed and accuracy.

The bundled MNIST teacher was made by

    python tools/train_teacher.py --data /path/to/MNIST \\
        --out inversion/assets/mnist_convnet32.safetensors

at commit 4b9e0fa; now the same command makes one like it, with other random numbers.
`configs/teachers/` holds the recipes of others. Images and labels stay on the device. The test set
is asked once, after the last step. A stopped run goes on when the same command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import torch.nn.functional as F
from teacher_recipe import TeacherRecipe, labels_of, prepare, side_at, weigh_classes
from torch import Tensor
from verbs import plain_endings

from distill.data.augment import make_views
from distill.data.images import Images, content_hash
from distill.data.maps import fit_maps
from distill.data.pixels import fit_pixels
from distill.evaluation import Evaluation, evaluate, predict
from distill.files import load_state, save_state, write_json
from distill.loop import Loop
from distill.methods.labels import known_loss
from distill.models import Classifier, save_classifier
from distill.options import DistillOptions
from distill.runtime import Runtime
from distill.tasks import Figures, say_figure
from distill.tasks.places import decide, pool_rows
from distill.update import StudentState, one_cycle
from synthesis_kernels.backend import (
    describe_device,
    forward_pass,
    repository_commit,
    resolve_device,
    resolve_precision,
)
from synthesis_kernels.errors import EchosetError

LOOK = 25
"""Steps between two looks at the loss."""


class Training:
    """A network that learns: everything that its steps need and change."""

    def __init__(self, recipe: TeacherRecipe, network: Classifier, data: Images) -> None:
        device = resolve_device(recipe.device)
        options = DistillOptions(
            optimiser=recipe.optimiser,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self.recipe = recipe
        self.device = device
        self.precision = resolve_precision(device, recipe.precision)
        self.images = data.images.to(device)  # (N, C, H, W) uint8
        self.labels = labels_of(data).to(device)  # (N, *places)
        self.task = network.task
        self.weights = weigh_classes(recipe, self.labels, network.spec.classes)
        # As the network sees them now: small ones at first.
        self.shown = self.images
        # Of label maps the rows, in the size that is shown.
        self.rows: Tensor | None = None  # (N, K, H, W)
        if recipe.maps:
            self.rows = pool_rows(self.labels, network.spec.classes)
        # Of the images in this epoch.
        self.order = torch.empty(0)
        self.state = StudentState(network, device, recipe.seed, options)
        self.per_epoch = len(self.images) // recipe.batch
        self.steps = recipe.epochs * self.per_epoch
        self.network: Callable[[Tensor], Tensor] = network.train()
        if recipe.compile:
            self.network = torch.compile(network, dynamic=False)

    def key(self) -> str:
        """What a saved state belongs to."""
        content = content_hash(self.images, self.labels)
        job = [self.recipe.settings(), content, self.device.type, str(self.precision)]
        return sha256(json.dumps(job).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """The network, its optimiser and random state, and the order of this epoch."""
        return {"student": self.state.state_dict(), "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.state.load_state_dict(state["student"])
        self.order = state["order"].to(self.device)

    def step(self) -> Tensor:
        """One update; the loss before it."""
        recipe = self.recipe
        state = self.state
        epoch, place = divmod(state.step, self.per_epoch)
        if place == 0:
            self.order = torch.randperm(
                len(self.images), generator=state.generator, device=self.device
            )
        index = self.order[place * recipe.batch : (place + 1) * recipe.batch]  # (B,)
        self._resize()
        state.optimiser.set_share(one_cycle(state.step, self.steps, warmup=0.2))
        with forward_pass(self.device, self.precision):
            passes = torch.full_like(index, epoch)
            logits = self.network(make_views(self.shown, index, passes, recipe.views, recipe.seed))
        loss = self._loss(logits.float(), index, passes)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        state.optimiser.step()
        state.step += 1
        return loss.detach()

    def _loss(
        self,
        logits: Tensor,  # (B, K, *places)
        index: Tensor,  # (B,)
        passes: Tensor,  # (B,)
    ) -> Tensor:
        """Cross-entropy over what is labelled; label maps go through the images' views."""
        if self.rows is None:
            return F.cross_entropy(logits, self.labels[index], self.weights)
        recipe = self.recipe
        rows = self.task.mixed_rows(self.rows, index, passes, self.shown, recipe.views, recipe.seed)
        return known_loss(logits, rows, self.weights)

    def judge(self) -> str:
        """How the network does on its training images as they are."""
        network = self.state.student
        labels = self.labels
        logits = predict(network, self.images, self.device)
        network.train()
        decisions = decide(logits)
        right = (decisions == labels)[labels >= 0].float().mean().item()
        figures = self.task.measure(self.task.count(decisions, labels, logits.shape[1]))
        return ", ".join(["of the training images", *say_figures(right, figures)])

    def _resize(self) -> None:
        """Show the images in the size that the recipe has for this step."""
        spec = self.state.student.spec
        progress = self.state.step / self.steps
        height = side_at(progress, spec.height, self.recipe.small)
        width = side_at(progress, spec.width, self.recipe.small)
        if tuple(self.shown.shape[2:]) != (height, width):
            self.shown = fit_pixels(self.images, spec.channels, (height, width))
            if self.rows is not None:
                labels = fit_maps(self.labels, (height, width))
                self.rows = pool_rows(labels, spec.classes)


def learn(training: Training, file: Path) -> float:
    """Take the steps that are left, with the state in `file`; the seconds that all steps took."""
    state = training.state
    key = training.key()
    saved = load_state(file, key)
    if saved is not None:
        training.load_state_dict(saved)

    def save(seconds: float) -> Path:
        state.seconds = seconds
        save_state(file, key, training.state_dict())
        return file

    loop = Loop(
        f"training {training.recipe.model}",
        training.steps,
        start=state.step,
        save=save,
        seconds=state.seconds,
        work="training",
    )
    with loop:
        while state.step < training.steps:
            loss = training.step()
            last = state.step == training.steps
            figures = None
            if state.step % LOOK == 0 or last:
                value = loss.item()
                _check_finite(loop, value, state.step, file)
                figures = f"loss {value:.4f}, {training.shown.shape[-1]} pixels"
            if training.recipe.look and state.step % training.per_epoch == 0:
                print(f"epoch {state.step // training.per_epoch}: {training.judge()}", flush=True)
            loop.advance(state.step, figures, finished=last)
        return loop.seconds


def _check_finite(loop: Loop, loss: float, step: int, file: Path) -> None:
    """Of a network that is no longer finite, keep no state to go on from."""
    try:
        loop.record("train", {"loss": loss}, "lower the learning rate", f"step {step}")
    except EchosetError:
        file.unlink(missing_ok=True)
        raise


def train(recipe: TeacherRecipe) -> float:
    """Train, save, and return the test accuracy."""
    network, data, test = prepare(recipe)
    training = Training(recipe, network, data)
    state_file = Path(recipe.out + ".state")
    seconds = learn(training, state_file)
    if recipe.half:
        round_to_half(network)
    result = evaluate(network, test, runtime=Runtime(device=recipe.device))
    judged = {**figures_of(result), "device": describe_device(training.device)}
    notes = {"recipe": "tools/train_teacher.py", **recipe.settings(), **judged}
    notes |= network.spec.notes
    network.spec = replace(network.spec, notes=notes)
    save_classifier(network.cpu(), recipe.out, recipe.half)
    if recipe.record:
        figures = {
            "parameters": network.parameters_count,
            "seconds": round(seconds),
            "recipe": recipe.settings(),
            **judged,
        }
        record(Path(recipe.record), Path(recipe.out), figures)
    state_file.unlink(missing_ok=True)
    size_and_time = f"{network.parameters_count:,} parameters, {seconds:.0f} s"
    shown = ", ".join(say_figures(result.accuracy, result.own))
    print(f"{recipe.out}: {shown} on the {recipe.judge} set, {size_and_time}")
    return result.accuracy


def figures_of(result: Evaluation) -> dict[str, Any]:
    """What is noted of a teacher's judgement."""
    return {"accuracy": result.accuracy, **result.own}


def say_figures(accuracy: float, own: Figures) -> list[str]:
    """The figures that count, the task's own first."""
    shown = [
        f"{say_figure(name)} {value:.4f}" for name, value in own.items() if isinstance(value, float)
    ]
    return [*shown, f"{accuracy:.2%}"]


def round_to_half(network: Classifier) -> None:
    """Round what is stored in 16 bits: the matrices and the convolutions."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()


def record(results: Path, file: Path, figures: dict[str, Any]) -> None:
    """List the teacher saved as `file` among the others in `results`, in place of one of the same
    name.
    """
    document: dict[str, Any] = {"teachers": []}
    if results.is_file():
        document = json.loads(results.read_text())
    machine = {
        "commit": repository_commit(),
        "device": figures["device"],
        "torch": torch.__version__,
    }
    entry = {
        "name": file.stem,
        "file": file.as_posix(),
        "sha256": sha256(file.read_bytes()).hexdigest(),
        **figures,
        **machine,
    }
    others = [each for each in document["teachers"] if each["name"] != file.stem]
    document["command"] = (
        "python tools/train_teacher.py --config configs/teachers/NAME.yaml --data DIR --out FILE "
        f"--record {results}"
    )
    document |= machine
    document["teachers"] = sorted([*others, entry], key=lambda each: each["name"])
    write_json(results, document)


if __name__ == "__main__":
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description="Train a teacher on real images.")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TeacherRecipe, as_group=False)
    with plain_endings():
        values = vars(parser.instantiate(parser.parse_args()))
        values.pop("config")
        train(TeacherRecipe(**values))
