"""Whole runs on a CUDA device: sets, lessons, views, sources and boundaries."""

import json
from dataclasses import replace

import pytest
import torch
from on_cuda import EITHER, cuda_teacher

from distill import (
    DistillOptions,
    StudentOptions,
    ViewOptions,
    build_student,
    distill,
    evaluate,
    load_images,
)
from distill.data.augment import make_views
from distill.methods import METHODS
from distill.runtime import Runtime
from inversion import (
    MNIST_SLICE,
    CollectOptions,
    attack_boundaries,
    collect,
    load_teacher,
    open_source,
    score,
    synthesize,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def teacher():
    return cuda_teacher()


@EITHER
def test_a_set_made_on_cuda_is_balanced_and_repeats(teacher, tmp_path, options):
    options = replace(options, calls=40)
    made = [
        synthesize(
            teacher, options, tmp_path / name, runtime=Runtime(seed=1, device="cuda", quiet=True)
        )
        for name in "ab"
    ]
    assert made[0].counts() == [3] * 10
    one, two = (
        [path.read_bytes() for path in sorted((tmp_path / name).glob("shard-*"))] for name in "ab"
    )
    assert one == two


def test_bench_runs_on_cuda(echoset):
    small = [
        "--teacher=wrn-10-1",
        "--batch=16",
        "--images=64",
        "--repeats=1",
        "--epochs=1",
        "--views=1",
        "--quiet",
        "--json",
    ]
    found = json.loads(echoset("bench", *small).stdout.splitlines()[-1])
    assert found["device"].startswith("cuda") and found["step"] == "auto"
    for name, times in (found["kernels"] | {"bn_match": found["bn_match"]}).items():
        assert "ours" not in times.get("not_captured", {}), name


@pytest.mark.parametrize("name", [name for name in METHODS if name != "labels"])
def test_every_loss_learns_alike_eager_and_captured(teacher, name):
    data = load_images(MNIST_SLICE)
    options = DistillOptions(steps=100, batch=64, views_per_image=2, loss={name: None})
    agreements = []
    for step in ("eager", "graph"):
        student = build_student(StudentOptions("convnet-8"), teacher.contract)
        found = distill(
            student,
            data,
            teacher,
            options,
            runtime=Runtime(device="cuda", precision="float32", step=step, quiet=True),
        )
        agreements.append(
            evaluate(
                found.student,
                data,
                teacher.cuda(),
                attacks=8,
                runtime=Runtime(device="cuda", quiet=True),
            ).agreement
        )
    assert min(agreements) > 0.5 and abs(agreements[0] - agreements[1]) < 0.1


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_the_other_optimisers_run_on_cuda(teacher, optimiser, step):
    data, options = (
        load_images(MNIST_SLICE),
        DistillOptions(steps=100, batch=64, views_per_image=2, optimiser=optimiser, ema=0.9),
    )
    student = build_student(StudentOptions("convnet-8"), teacher.contract)
    assert (
        distill(
            student, data, teacher, options, runtime=Runtime(device="cuda", step=step, quiet=True)
        ).agreement
        > 0.5
    )


def test_strong_views_are_the_same_on_both_devices():
    data = load_images(MNIST_SLICE)
    options = ViewOptions(operations=2, mixup=0.5, cutmix=0.5, erase=0.5)
    index, view = torch.arange(64), torch.arange(64) % 5
    here = make_views(data.images, index, view, options, 0)
    there = make_views(data.images.cuda(), index.cuda(), view.cuda(), options, 0).cpu()
    apart = ((here - there).abs() > 1e-3).float().mean((1, 2, 3))
    assert (apart > 0.05).sum() <= 3  # a flat ground may fall to the other side of a threshold


def test_making_strong_views_never_waits_for_the_host():
    pool = load_images(MNIST_SLICE).images.cuda()
    options = ViewOptions(operations=2, mixup=0.5, cutmix=0.5, erase=0.5)
    index, view = torch.arange(64, device="cuda"), torch.arange(64, device="cuda")
    make_views(pool, index, view, options, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        make_views(pool, index, view, options, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "name", ["noise", "gaussian", "smooth", "pink", "leaves", "shaders", "fractals"]
)
def test_sources_draw_on_cuda_and_repeat(name):
    source = open_source(name, 3, 32, seed=1, device="cuda")
    block = source.block(0)
    assert (
        block.is_cuda
        and block.dtype is torch.uint8
        and block.shape == (512, 3, 32, 32)
        and block.float().std() > 5
    )
    assert torch.equal(block, source.block(0)) and not torch.equal(block, source.block(1))


def test_a_set_collected_on_cuda_is_balanced_and_the_teachers_own(teacher, tmp_path):
    made = collect(
        teacher,
        ("shaders", "noise"),
        CollectOptions(images=100, draws=5),
        tmp_path / "set",
        runtime=Runtime(device="cuda", quiet=True),
    )
    assert made.counts() == [10] * 10
    with torch.no_grad():
        answers = teacher(
            (made.images.cuda().float() / 255).contiguous(memory_format=torch.channels_last)
        )
    assert torch.equal(answers.argmax(1).cpu(), made.labels)
    elsewhere = load_teacher()  # on the CPU, as the command line has it
    assert score(made.images, elsewhere, runtime=Runtime(device="cuda", quiet=True)).values[
        "coverage"
    ] == pytest.approx(1)
    assert elsewhere.mean.device.type == "cpu"


def test_boundaries_are_found_on_cuda(teacher):
    images = load_images(MNIST_SLICE).images[:20].cuda()
    targets = torch.arange(10, device="cuda").expand(20, -1)
    found = attack_boundaries(teacher, images, targets)
    assert (
        found.found.float().mean() > 0.8
        and (found.labels[..., 1] == found.targets)[found.found].all()
    )
