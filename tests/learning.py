"""Learning in tests: some digits, students of the teacher's kind, short options and one lesson."""

from dataclasses import replace

import torch

from distill import DistillOptions, build_classifier, load_images
from distill.methods import METHODS, find_method
from distill.runtime import Runtime
from distill.train import distill
from distill.views import to_input
from inversion import MNIST_SLICE

SHORT = DistillOptions(steps=4, batch=16, views_per_image=2)
PUBLISHED = {name: find_method(name).weight for name in METHODS}
SINGLE = [name for name in PUBLISHED if name != "labels"]


def few_digits():
    whole = load_images(MNIST_SLICE)
    return whole.chosen(torch.arange(120))


def student_like(teacher, model="convnet-4", seed=0):
    return build_classifier(replace(teacher.spec, model=model, notes={}), seed)


def run(teacher, data, options, model="convnet-4", **more):
    return distill(
        student_like(teacher, model),
        data,
        teacher,
        options,
        folder=more.pop("folder", None),
        runtime=Runtime(device="cpu", quiet=True, **more),
    )


def lesson(teacher, data, options, learner):
    """One batch's inputs, as the loop would give them."""
    torch.manual_seed(0)
    images = to_input(data.images[:16])
    answers = teacher(images).detach() if learner.takes_answers else torch.empty(0)
    return images, answers, torch.empty(0), torch.tensor(0.5), torch.rand(16)
