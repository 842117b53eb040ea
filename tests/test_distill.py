"""A student that learns from a set: its seed, its stops, what it is asked."""

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, assert_learnt, environment

from distill import (
    DistillOptions,
    StudentOptions,
    TransferSet,
    build_student,
    distill,
    load_images,
    views,
)
from distill.data.augment import make_views
from distill.files import read_log
from distill.loop import Interrupted, StopFlag
from distill.optimisers import Scheduled
from distill.options import ViewOptions
from distill.runtime import Runtime
from distill.sets.shards import shard_name, write_shard
from distill.sets.transfer_set import write_manifest
from distill.train import forget
from distill.views import bank_answers
from inversion import MNIST_SLICE
from inversion.cli.main import main
from synthesis_kernels.errors import EchosetError

SHORT = DistillOptions(steps=30, batch=32, views_per_image=3)


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    """A transfer set of 200 real images, to test the stage without waiting for the other one."""
    from distill.evaluation import predict

    folder = tmp_path_factory.mktemp("set")
    images = load_images(MNIST_SLICE).images[:200]
    logits = predict(teacher, images, torch.device("cpu"))
    labels = logits.argmax(1)
    rows = {
        "images": images,
        "labels": labels,
        "logits": logits,
        "priority": torch.zeros(200),
        "round": torch.zeros(200).int(),
    }
    digest = write_shard(folder / shard_name(0, 1), {k: v.clone() for k, v in rows.items()})
    contract = {
        "channels": 1,
        "size": 28,
        "classes": 10,
        "task": "classification",
        "mean": [0.1307],
        "std": [0.3081],
    }
    shards = [{"file": shard_name(0, 1), "sha256": digest, "count": 200}]
    made_by = {"model": "convnet-32", "weight_hash": teacher.weight_hash()}
    counts = torch.bincount(labels, minlength=10).tolist()
    write_manifest(
        folder,
        {
            "code_version": "0",
            "teacher": made_by,
            "config": {},
            "input": contract,
            "counts": counts,
            "shards": shards,
        },
    )
    return folder


@pytest.fixture
def transfer_set(folder):
    return TransferSet.load(folder)


def student_for(transfer_set, model="convnet-8", seed=0):
    return build_student(StudentOptions(model), transfer_set.manifest["input"], seed)


def run(teacher, transfer_set, options=SHORT, **more):
    return distill(
        student_for(transfer_set),
        transfer_set,
        teacher,
        options,
        folder=more.pop("folder", None),
        runtime=Runtime(device="cpu", quiet=True, **more),
    )


def test_a_student_learns_to_decide_as_its_teacher(teacher, transfer_set):
    result = run(teacher, transfer_set, replace(SHORT, steps=150, views=ViewOptions()))
    assert result.agreement > 0.85
    assert not result.student.training


@pytest.mark.parametrize("views_per_image", [0, 3])
def test_same_seed_same_student(teacher, transfer_set, views_per_image):
    options = replace(SHORT, views_per_image=views_per_image)
    one, two, other = (
        run(teacher, transfer_set, options, seed=seed).student.weight_hash() for seed in (1, 1, 2)
    )
    assert one == two != other


def test_views_and_mixup_change_what_is_learnt(teacher, transfer_set):
    still = ViewOptions(rotate=0, scale=0, shift=0)
    hashes = {
        run(teacher, transfer_set, replace(SHORT, views=v)).student.weight_hash()
        for v in (ViewOptions(), still, ViewOptions(mixup=1.0))
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("model", ["lenet5", "wrn-10-1", "cifar-mobilenetv2"])
def test_teacher_and_student_may_be_of_different_families(teacher, transfer_set, model):
    before = list(student_for(transfer_set, model).parameters())
    student = student_for(transfer_set, model)
    learnt = distill(
        student,
        transfer_set,
        teacher,
        replace(SHORT, steps=3),
        runtime=Runtime(device="cpu", quiet=True),
    ).student
    assert_learnt(learnt, before)


def test_a_stopped_distillation_goes_on_to_the_same_student(folder, tmp_path):
    flags = [
        "--distillation.steps=300",
        "--distillation.batch=32",
        "--distillation.views_per_image=2",
        "--device=cpu",
        "--quiet",
    ]

    def command(name):
        return [
            "distill",
            f"--set={folder}",
            f"--out={tmp_path / name}",
            "--student=convnet-4",
            *flags,
        ]

    assert main(command("whole")) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "inversion.cli.main", *command("stopped")],
        env=environment(),
        cwd=ROOT,
    )
    while not read_log(tmp_path / "stopped" / "log.jsonl") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "stopped" / "student.state").exists()
    assert main(command("stopped")) == 0
    student = "student.safetensors"
    assert (tmp_path / "stopped" / student).read_bytes() == (
        tmp_path / "whole" / student
    ).read_bytes()
    steps = [event["step"] for event in read_log(tmp_path / "stopped" / "log.jsonl")]
    assert steps == list(range(50, 301, 50))


def test_a_stopped_call_is_made_again_with_the_same_student(
    teacher, transfer_set, tmp_path, monkeypatch
):
    class StopsAfterTen(StopFlag):
        raised = property(lambda self: next(looks), lambda self, value: None)

    student, looks = student_for(transfer_set), iter([False] * 10 + [True])
    given = {"options": SHORT, "folder": tmp_path, "runtime": Runtime(device="cpu", quiet=True)}
    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match=r"student\.state keeps it"),
    ):
        patch.setattr("distill.loop.StopFlag", StopsAfterTen)
        distill(student, transfer_set, teacher, **given)
    assert student.weight_hash() == student_for(transfer_set).weight_hash()
    distill(student, transfer_set, teacher, **given)
    assert student.weight_hash() == run(teacher, transfer_set).student.weight_hash()


def test_the_bank_holds_what_the_teacher_says_to_each_view(teacher, transfer_set):
    options = ViewOptions(mixup=0.5)
    (bank,) = bank_answers(teacher, transfer_set.images, 3, options, 5, torch.float32, quiet=True)
    index, view = torch.tensor([4, 150, 4]), torch.tensor([2, 0, 1])
    answers = teacher(make_views(transfer_set.images, index, view, options, 5))
    torch.testing.assert_close(bank[index, view], answers, rtol=1e-4, atol=1e-3)


def test_large_images_are_asked_about_a_few_at_a_time():
    asked, images = [], torch.rand(50, 1, 224, 224)

    def network(part):
        asked.append(len(part))
        return part.mean((2, 3))

    assert torch.equal(
        views.ask(network, images, torch.float32), images.mean((2, 3))
    ) and asked == [8, 8, 8, 8, 8, 8, 2]
    assert (
        views.at_once(torch.empty(1, 1, 32, 32, device="meta")) == 128
        and views.at_once(torch.empty(1, 1, 8, 8), 250) == 250
        and views.at_once(torch.empty(1, 1, 4096, 4096, device="meta")) == 8
    )


@pytest.mark.parametrize("kept", [False, True])
def test_a_student_that_diverged_is_given_back_as_it_came(teacher, transfer_set, tmp_path, kept):
    student = student_for(transfer_set, "convnet-4")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    options = DistillOptions(steps=60, batch=8, learning_rate=1e30, optimiser="sgd")
    with pytest.raises(EchosetError, match="lower the learning rate"):
        distill(
            student,
            transfer_set,
            teacher,
            options,
            folder=tmp_path if kept else None,
            runtime=Runtime(device="cpu", quiet=True),
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("hints", [False, True])
def test_a_bank_that_was_stopped_goes_on_where_it_was(
    teacher, transfer_set, tmp_path, monkeypatch, hints
):
    class StopsAfter(StopFlag):
        raised = property(lambda self: next(looks), lambda self, value: None)

    def look(images):
        asked.append(1)
        answers = views.ask(teacher, images, torch.float32)
        return [answers, answers[:, :2, None].bfloat16()] if hints else [answers]

    monkeypatch.setattr(views, "CHUNK", 80)
    asked, given = [], (teacher, transfer_set.images, 3, ViewOptions(), 5, torch.float32, True)
    whole, parts = bank_answers(*given, None, look), len(asked)
    for stop_after in (4, 1):  # more than once: what is kept is added to
        looks = iter([False] * stop_after + [True])
        with (
            monkeypatch.context() as patch,
            pytest.raises(Interrupted, match="keeps it"),
        ):
            patch.setattr("distill.loop.StopFlag", StopsAfter)
            bank_answers(*given, tmp_path, look)
    assert len(list(tmp_path.glob("answers-*.state"))) == 2
    again = bank_answers(*given, tmp_path, look)
    assert (
        len(again) == 1 + hints and all(map(torch.equal, again, whole)) and len(asked) == 2 * parts
    )
    other = (*given[:4], 6, *given[5:])  # another seed: other views, other answers
    assert (
        not torch.equal(bank_answers(*other, tmp_path, look)[0], whole[0])
        and len(asked) == 3 * parts
    )
    forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_refusals(teacher, transfer_set):
    with pytest.raises(EchosetError, match="the student has channels 3, the teacher 1"):
        wrong = build_student(
            StudentOptions("convnet-4"), transfer_set.manifest["input"] | {"channels": 3}
        )
        distill(wrong, transfer_set, teacher, SHORT, runtime=Runtime(quiet=True))
    with pytest.raises(EchosetError, match="needs a CUDA device"):
        run(teacher, transfer_set, step="graph")
    for change in ({"steps": 0}, {"batch": 1}, {"views_per_image": -1}, {"warmup": 1.0}):
        with pytest.raises(EchosetError, match=next(iter(change))):
            run(teacher, transfer_set, replace(SHORT, **change))


def test_the_rate_follows_the_schedule(teacher, transfer_set, monkeypatch):
    shares, set_share = [], Scheduled.set_share
    monkeypatch.setattr(
        Scheduled, "set_share", lambda self, share: shares.append(share) or set_share(self, share)
    )
    run(teacher, transfer_set, replace(SHORT, steps=10, warmup=0.4, views_per_image=0))
    places = [(step + 0.5) / 10 for step in range(10)]
    expected = [
        p / 0.4 if p < 0.4 else (1 + math.cos(math.pi * (p - 0.4) / 0.6)) / 2 for p in places
    ]
    assert shares == pytest.approx(expected)
