"""How many kernels Triton compiles before a run on a GPU is under way, counted by its interpreter."""

import inspect
from functools import partial
from importlib import import_module

import pytest
import torch

from distill.data.augment import make_views
from distill.models import ModelSpec, build_classifier
from distill.models.frozen import Frozen
from distill.update import StudentState
from inversion.bench.distillation import PHOTOGRAPHS
from inversion.options import GeneratorOptions, SynthesisOptions
from inversion.parts.generator import Generator
from inversion.parts.inner import InnerLoop
from inversion.parts.student_step import StudentStep
from synthesis_kernels.backend import kernel_form

triton = pytest.importorskip("triton", reason="triton is for Linux on x86-64")

FORMS = ("bn_match", "bn_train", "counter", "divergence", "priority", "turn", "views")
BATCH = 2


@pytest.fixture
def compiled(monkeypatch):
    """For each kernel that is run, all that a compilation of it depends on."""
    from triton.runtime.interpreter import InterpretedFunction

    found = {}
    for form in FORMS:
        module = import_module(f"synthesis_kernels.triton_forms.{form}")
        for name, kernel in vars(module).items():
            if isinstance(kernel, InterpretedFunction) and name.endswith("_kernel"):
                keys = found.setdefault(f"{form}.{name.strip('_')}", set())
                monkeypatch.setattr(kernel, "pre_run_hooks", [partial(_note, keys, kernel)])
    return found


def _note(keys, kernel, /, *given, **named):
    values = dict(zip(kernel.arg_names, given, strict=False)) | named
    changing = kernel.kwargs.get("do_not_specialize") or ()
    kinds = inspect.signature(kernel.fn).parameters
    key = []
    for name, value in sorted(values.items()):
        is_constant = name not in kinds or "constexpr" in str(kinds[name].annotation)
        key.append((name, value if is_constant else _kind(value, name in changing)))
    keys.add(tuple(key))


def _kind(value, changes):
    """An argument as Triton sees it: of an integer it asks whether it is 1 or divides by 16."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if type(value) is int and not changes:
        return value == 1, value % 16 == 0
    return type(value)


def network(name):
    spec = ModelSpec(name, channels=3, size=8, classes=10)
    return build_classifier(spec).to(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_kernels_are_compiled_for_types_and_not_for_layers(compiled, precision):
    pool = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    index = torch.arange(BATCH)
    options = SynthesisOptions(batch=BATCH, generator=GeneratorOptions(latent=16, width=16))
    teacher = network("wrn-10-2").eval().requires_grad_(False)
    generator = Generator(3, 8, 10, latent=16, width=16).to(memory_format=torch.channels_last)
    with kernel_form("triton"):
        frozen = Frozen(teacher, precision)
        inner = InnerLoop(frozen, generator, network("wrn-10-1"), options, 1000, precision, 0)
        inner.begin(torch.randn(BATCH, 16), None)
        for _ in range(2):
            view, held = torch.zeros((), dtype=torch.int64), torch.ones(10)
            inner.run(index, index, view, held, adversarial=True)
        state = StudentState(network("wrn-10-1").train(), pool.device, 0)
        step = StudentStep(state, 4.0, precision)
        for _ in range(2):
            images = make_views(pool, index, index, PHOTOGRAPHS, 0)
            step(images, torch.randn(BATCH, 10), torch.ones(BATCH))
    counts = {name: len(keys) for name, keys in compiled.items() if keys}
    assert sum(counts.values()) <= 8, counts
