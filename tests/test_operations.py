"""How many operations a step is made of: on a GPU their number is its time, so they may not creep
up. Counted on any machine, in the eager step.
"""

from dataclasses import replace

import pytest
import torch
from conftest import needs_native

from distill.data.augment import make_views
from distill.methods.hinton import hinton_loss
from distill.models import ModelSpec, build_classifier
from distill.models.frozen import Frozen
from distill.optimisers import MOST_WASTED
from distill.update import StudentState
from inversion.bench.distillation import PHOTOGRAPHS
from inversion.bench.limits import Traffic
from inversion.options import GeneratorOptions, ObjectiveOptions, SynthesisOptions
from inversion.parts.generator import Generator
from inversion.parts.inner import InnerLoop
from inversion.parts.student_step import StudentStep
from synthesis_kernels import conv3x3, narrow_conv3x3, strided_conv
from synthesis_kernels.divergence import compare

CPU = torch.device("cpu")
BATCH = 8


def network(name):
    spec = ModelSpec(name, channels=3, size=32, classes=10)
    return build_classifier(spec).to(memory_format=torch.channels_last)


def operations(step):
    """Of the second step: the first one makes what the others find."""
    step()
    with Traffic() as traffic:
        step()
    return traffic.operations


@pytest.fixture(params=["ours", "the library's"])
def convolutions(request, monkeypatch):
    """On a GPU convolutions are the library's, and every other native call here is a kernel."""
    if request.param != "ours":
        for kernel in (conv3x3, strided_conv):
            monkeypatch.setattr(kernel, "has", lambda precision: False)
        monkeypatch.setattr(narrow_conv3x3, "runs", lambda *tensors: False)
        monkeypatch.setitem(MOST_WASTED, "cpu", MOST_WASTED["cuda"])
    return request.param


@needs_native
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_operations_of_a_student_step(precision, convolutions):
    if convolutions == "ours" and not conv3x3.has(precision):
        pytest.skip("in bfloat16 ours need a processor with AVX-512-bf16")
    state = StudentState(network("wrn-16-1").train(), CPU, 0)
    train = StudentStep(state, 4.0, precision)
    images = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    answers, weights = torch.randn(BATCH, 10), torch.ones(BATCH)
    count = operations(lambda: train(images, answers, weights))
    assert count <= STUDENT_STEP[precision, convolutions]


@needs_native
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_operations_of_an_inner_step(precision, convolutions):
    options = SynthesisOptions(
        batch=BATCH,
        generator=GeneratorOptions(latent=16, width=16),
        objective=ObjectiveOptions(bn_relative=False),
    )
    teacher = network("wrn-40-2").eval().requires_grad_(False)
    generator = Generator(3, 32, 10, latent=16, width=16).to(memory_format=torch.channels_last)
    adversary = network("wrn-16-1").eval()
    frozen = Frozen(teacher, precision)
    inner = InnerLoop(frozen, generator, adversary, options, 1000, precision, 0)
    inner.begin(torch.randn(BATCH, 16), None)
    wanted = torch.arange(BATCH) % 10
    view, held = torch.zeros((), dtype=torch.int64), torch.ones(10)
    step = lambda: inner.run(wanted, wanted, view, held, adversarial=True)  # noqa: E731
    assert operations(step) <= INNER_STEP[precision, convolutions]


@needs_native
@pytest.mark.parametrize(
    "options", [PHOTOGRAPHS, replace(PHOTOGRAPHS, cutout=0.2, mixup=0.5, cutmix=0.5)]
)
def test_views_take_no_operation_beside_their_kernel(options):
    pool = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    index = torch.arange(BATCH)
    assert operations(lambda: make_views(pool, index, index, options, 0)) == 1


@needs_native
def test_the_loss_takes_no_operation_beside_its_kernels():
    """But for what begins the way back."""
    teacher, student, weights = torch.randn(BATCH, 10), torch.randn(BATCH, 10), torch.ones(BATCH)
    student.requires_grad_()
    loss = lambda: hinton_loss(student, teacher, 4.0, weights)  # noqa: E731
    assert operations(loss) == 1
    assert operations(lambda: torch.autograd.grad(loss(), student)) == 3
    assert operations(lambda: compare(teacher, student)) == 1


STUDENT_STEP = {
    (torch.float32, "ours"): 127,
    (torch.bfloat16, "ours"): 132,
    (torch.float32, "the library's"): 138,
    (torch.bfloat16, "the library's"): 143,
}
INNER_STEP = {
    (torch.float32, "ours"): 350,
    (torch.bfloat16, "ours"): 362,
    (torch.float32, "the library's"): 335,
    (torch.bfloat16, "the library's"): 359,
}
