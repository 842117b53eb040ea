"""What only the Triton forms have: blocks that don't fit, and code that a GPU must be able to
run.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synthesis_kernels.backend import kernel_form
from synthesis_kernels.bn_match import bn_match, bn_match_reference
from synthesis_kernels.bn_train import bn_train, bn_train_reference
from synthesis_kernels.divergence import (
    divergence,
    divergence_reference,
    mean_divergence,
    mean_divergence_reference,
)
from synthesis_kernels.views import ViewPlan, views, views_reference

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("programs, block", [(1, 64), (3, 128), (5, 256)])
@pytest.mark.parametrize("channels", [1, 20, 130])
def test_bn_match_over_several_programs_and_steps(monkeypatch, programs, block, channels):
    from synthesis_kernels.triton_forms import bn_match as form

    monkeypatch.setattr(form, "PROGRAMS", programs)
    monkeypatch.setattr(form, "BLOCK", block)
    torch.manual_seed(0)
    x = torch.randn(3, channels, 5, 3, device=DEVICE)
    scale, shift = torch.randn(2, channels, device=DEVICE)
    with kernel_form("triton"):
        ours, again = bn_match(x, scale, shift, relu=True), bn_match(x, scale, shift, relu=True)
    for value, repeated, exact in zip(
        ours, again, bn_match_reference(x, scale, shift, relu=True), strict=True
    ):
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(value, repeated)


@pytest.mark.parametrize("programs, block", [(1, 64), (3, 128), (300, 128)])
@pytest.mark.parametrize("channels", [1, 20, 130])
def test_bn_train_over_several_programs_and_steps(monkeypatch, programs, block, channels):
    from synthesis_kernels.triton_forms import bn_train as form

    monkeypatch.setattr(form, "PROGRAMS", programs)
    monkeypatch.setattr(form, "BLOCK", block)
    torch.manual_seed(0)
    x = torch.randn(3, channels, 5, 3, device=DEVICE)
    vectors = torch.rand(4, channels, device=DEVICE)
    results = []
    with kernel_form("triton"):
        for function in (bn_train, bn_train, bn_train_reference):
            inputs = [one.clone().requires_grad_() for one in (x, *vectors[:2])]
            moved = [one.clone() for one in vectors[2:]]
            y = function(*inputs, *moved, 0.1, 1e-5)
            results.append([y, *moved, *torch.autograd.grad(y.pow(2).sum(), inputs)])
    for value, repeated, exact in zip(*results, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-4, atol=1e-4)
        assert torch.equal(value, repeated)


@pytest.mark.parametrize("classes", [1, 16, 1000, 3000])
def test_divergence_of_many_classes(classes):
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 65 if classes < 100 else 3, classes, device=DEVICE)
    with kernel_form("triton"):
        ours = divergence(teacher, student, 3.0)
    torch.testing.assert_close(
        ours, divergence_reference(teacher, student, 3.0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("alone", [1, 1 << 14])
def test_a_mean_divergence_is_one_program_s_or_several_s(monkeypatch, alone):
    from synthesis_kernels.triton_forms import divergence as form

    monkeypatch.setattr(form, "ALONE", alone)
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 70, 20, device=DEVICE)
    weights = torch.rand(70, device=DEVICE)
    with kernel_form("triton"):
        ours = mean_divergence(teacher, student, 3.0, weights)
    exact = mean_divergence_reference(teacher, student, 3.0, weights)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def test_views_larger_than_a_block():
    torch.manual_seed(0)
    pool = torch.randint(0, 256, (3, 3, 40, 33), dtype=torch.uint8)
    index, plan = torch.tensor([2, 0]), ViewPlan(crop=4, flip=True, cutout=9)
    with kernel_form("triton"):
        ours = views(pool.to(DEVICE), index.to(DEVICE), index.to(DEVICE), plan, seed=0)
    assert torch.equal(ours.cpu(), views_reference(pool, index, index, plan, seed=0))


@pytest.mark.parametrize("look_up", [2, 4, 16])
def test_the_views_of_an_image_are_found_block_by_block(monkeypatch, look_up):
    from synthesis_kernels.triton_forms import views as form

    monkeypatch.setattr(form, "LOOK_UP", look_up)
    torch.manual_seed(0)
    pool = torch.rand(3, 3, 20, 18, device=DEVICE, requires_grad=True)
    index = torch.tensor([2, 0, 2, 2, 0, 2, 2], device=DEVICE)
    plan = ViewPlan(crop=4, flip=True, cutout=9, mixup=0.4, cutmix=0.5)
    weights = torch.randn(7, 3, 20, 18, device=DEVICE)
    with kernel_form("triton"):
        ours = views(pool, index, torch.arange(7, device=DEVICE), plan, seed=0)
        (gradient,) = torch.autograd.grad((ours * weights).sum(), pool)
    exact = views_reference(pool, index, torch.arange(7, device=DEVICE), plan, seed=0)
    (expected,) = torch.autograd.grad((exact * weights).sum(), pool)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from synthesis_kernels.triton_forms import bn_match, bn_train, counter, divergence, priority, turn, views
from synthesis_kernels.triton_forms.rounding import FUSED

def build(kernel, types, **constants):
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    values = {(kernel.arg_names.index(n),): v for n, v in constants.items()}
    return triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 90, 32), options=FUSED).asm["ptx"]

def pointers(kernel, kind, **other):
    return {n: kind for n in kernel.arg_names if n.endswith("_ptr")} | other

for half in ("*bf16", "*fp32"):
    block = dict(BLOCK_R=64, BLOCK_C=32)
    wide = {f"{n}_ptr": "*fp32" for n in ("scale", "shift", "sums", "moments", "slopes")}
    for name in ("forward", "backward"):
        kernel = getattr(bn_match, f"_{name}_kernel")
        build(kernel, pointers(kernel, half, **wide, low="fp32", rows="i64"), **block)
    build(bn_match._finish_kernel, pointers(bn_match._finish_kernel, "*fp32"), BLOCK_P=128, BLOCK_C=16)
    block = dict(WIDE=tl.float32, BLOCK_R=128, BLOCK_C=32)
    maps = ("rows", "branch", "total", "grad", "y", "residual", "passed", "out", "to_residual")
    for kernel in (bn_train._sums_kernel, bn_train._write_kernel):
        kinds = pointers(kernel, "*fp32", momentum="fp32", eps="fp32", slope="fp32")
        kinds |= {f"{n}_ptr": half for n in maps} | {"batches_ptr": "*i64"}
        parts = {"PARTS": 64} if "PARTS" in kernel.arg_names else {}
        build(kernel, kinds, **block, **parts)
    kernel = divergence._divergence_kernel
    build(kernel, pointers(kernel, half, temperature="fp32"), WIDE=tl.float32, BLOCK_R=128, BLOCK_K=16)
    kinds = dict(index_ptr="*i64", view_ptr="*i64", bytes_ptr="*u8", mixup="fp32", cutmix="fp32")
    block = dict(PIXELS=256, BLOCK_C=4)
    for kind, wide in ((half, tl.float32), ("*fp64", tl.float64)):
        block |= dict(WIDE=wide)
        kinds |= dict(pool_ptr=kind, grad_ptr=kind, out_ptr=kind)
        ptx = build(views._views_kernel, kinds, **block)
        assert "div.full" not in ptx and "div.rn.f32" in ptx
        build(views._spread_kernel, kinds, LOOK_UP=256, **block)
kinds = pointers(turn._turn_kernel, "*fp32", index_ptr="*i64", view_ptr="*i64", rotate="fp32", scale="fp32", shift="fp32")
build(turn._turn_kernel, kinds, C=3, H=9, W=7, SIDE=7, PIXELS=256, BLOCK_C=4)
build(priority._race_kernel, pointers(priority._race_kernel, "*fp32"), BLOCK=1024)
build(counter._uniforms_kernel, dict(index_ptr="*i64", view_ptr="*i64", out_ptr="*fp32"), BLOCK=1024)
record = priority._record_kernel
build(record, pointers(record, "*fp32", drawn_ptr="*i64"), LEAST=1e-4, BLOCK=256)
print("built")
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="triton brings its assembler for x86-64",
)
def test_kernels_compile_for_a_gpu(tmp_path):
    """The interpreter takes more than the compiler does; the compiler needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and done.stdout.strip() == "built", done.stderr
