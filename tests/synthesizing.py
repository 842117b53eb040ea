"""Synthesis in tests: a share of a set, and the steps of one call."""

import torch

from distill.models.frozen import Frozen
from distill.runtime import Runtime
from inversion import plan, synthesize_share
from inversion.parts.adversary import DrawStep, adversary_steps
from inversion.parts.call import Store, generator_call
from inversion.parts.inner import InnerLoop
from inversion.parts.state import SynthesisState
from inversion.parts.student_step import StudentStep

CPU = torch.device("cpu")


def make(teacher, options, out, **more):
    return synthesize_share(
        teacher, options, out, runtime=Runtime(device="cpu", quiet=True, **more)
    )


def shard_bytes(folder):
    return [path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))]


def run_call(teacher, state, options, step="eager"):
    frozen = Frozen(teacher)
    student, capacity = state.adversary.student, state.buffer.capacity
    inner = InnerLoop(frozen, state.generator, student, options, capacity, torch.float32, 0, step)
    images, logits, rank, _ = generator_call(inner, teacher, state, options)
    Store(frozen, state, options, torch.float32)(images, logits, rank)
    train = StudentStep(
        state.adversary, options.adversary.temperature, torch.float32, learner=state.learner
    )
    adversary_steps(DrawStep(train, frozen, state, options, torch.float32))
    state.call += 1


def assert_equal(one, two):
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def one_call(teacher, options, calls=2):
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    for _ in range(calls):
        run_call(teacher, state, options)
    return state


def store(state, frozen, options, images):
    """Offer images, each decided for one class after the other."""
    logits = 9 * torch.eye(10)[torch.arange(len(images)) % 10]
    Store(frozen, state, options, torch.float32)(images, logits, torch.zeros(len(images)))
