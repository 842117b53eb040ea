import copy
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import ROOT, assert_learnt, environment
from hypothesis import given, settings
from hypothesis import strategies as st

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
from distill.methods.hinton import hinton_loss
from distill.optimisers import COEFFICIENTS, Muon, Scheduled, newton_schulz, stack_up
from distill.options import ViewOptions
from distill.pacing import Every
from distill.runtime import Runtime
from distill.sets.transfer_set import shard_name, write_manifest, write_shard
from distill.train import forget
from distill.update import StudentState, StudentStep, one_cycle
from distill.views import bank_answers
from inversion import MNIST_SLICE
from inversion.cli.main import main
from synthesis_kernels.divergence import divergence
from synthesis_kernels.errors import EchosetError

INPUT = {"channels": 1, "size": 28, "classes": 10, "task": "classification"}
INPUT |= {"mean": [0.1307], "std": [0.3081]}
SHAPES = [(5, 8), (8, 5), (6, 6), (4, 3, 3, 3), (16, 2, 3, 3), (8, 16, 1, 1), (3, 2, 5)]

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


def test_a_stop_is_heard_though_nobody_reads_what_is_said_of_it(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with StopFlag() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.raised
    print("said to nobody", file=sys.stderr, flush=True)


@pytest.fixture
def heeds_ctrl_c():
    """As at a terminal: a shell has what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_does_not_end_what_is_saving(first):
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert stop.raised
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


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


def test_hinton_loss_is_the_weighted_mean():
    teacher, student = torch.randn(4, 3), torch.randn(4, 3)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected = divergence(teacher, student, 4.0)
    torch.testing.assert_close(hinton_loss(student, teacher, 4.0), expected.mean())
    torch.testing.assert_close(hinton_loss(student, teacher, 4.0, weights), expected[0] / 4)
    assert hinton_loss(teacher, teacher, 4.0).abs() < 1e-6


def test_schedule_rises_then_falls_to_zero():
    shares = [one_cycle(step, 100, 0.2) for step in range(100)]
    assert (
        max(range(100), key=shares.__getitem__) in (19, 20)
        and shares[0] < 0.05
        and shares[-1] < 0.001
    )
    assert shares[:20] == sorted(shares[:20]) and shares[20:] == sorted(shares[20:], reverse=True)
    assert one_cycle(500, 100, 0.2) < 1e-9


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 8), (6, 6)])
def test_orthogonalised_singular_values_are_near_one(shape, precision):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(precision)
    values = torch.linalg.svdvals(newton_schulz(matrices, steps=6).float())
    assert values.min() > 0.5 and values.max() < 1.4


def orthogonalise(matrix):  # (R, C)
    """One matrix by itself, in float64, as the paper has it."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / (matrix.double().norm() + 1e-7)
    for _ in range(4):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@settings(max_examples=25)
@given(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6), st.integers(0, 99))
def test_matrices_made_orthogonal_together_are_as_each_by_itself(shapes, seed):
    random = torch.Generator().manual_seed(seed)
    layout = [torch.contiguous_format, torch.channels_last][seed % 2]
    parameters = []
    for shape in shapes:
        parameter = torch.randn(shape, generator=random)
        if len(shape) == 4:
            parameter = parameter.contiguous(memory_format=layout)
        parameters.append(parameter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.optimisers.resolve_precision", lambda device: torch.float32)
        stacks = stack_up(parameters)
    assert sorted(place for stack in stacks for place in stack.places) == [*range(len(shapes))]
    for stack in stacks:
        moves = stack.orthogonalise([parameters[place] for place in stack.places], torch.tensor(2))
        for place, move in zip(stack.places, moves, strict=True):
            matrix = parameters[place].flatten(1)
            rows, columns = matrix.shape
            expected = 2 * max(1, rows / columns) ** 0.5 * orthogonalise(matrix)
            torch.testing.assert_close(
                move.flatten(1).double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max()
            )


def test_an_image_of_no_weight_teaches_the_adversarial_student_nothing():
    student = build_student(StudentOptions("convnet-4"), INPUT)
    state = StudentState(student.train(), torch.device("cpu"), 0, DistillOptions(weight_decay=0))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    train = StudentStep(state, 4.0, torch.float32)
    images, answers = torch.rand(4, 1, 28, 28), 9 * torch.randn(4, 10)
    train(images, answers, torch.zeros(4))
    assert all(map(torch.equal, before, student.parameters()))
    train(images, answers, torch.ones(4))
    assert not any(map(torch.equal, before, student.parameters()))


def test_a_restored_state_brings_its_dropout_along():
    student = build_student(StudentOptions("convnet-4"), INPUT)
    with torch.random.fork_rng(devices=[]):
        state = StudentState(student, torch.device("cpu"), 0)
        saved = state.state_dict()
        drawn = torch.rand(3)
        state.load_state_dict(saved)
        assert torch.equal(torch.rand(3), drawn)


def test_few_stacks_are_made_where_little_is_wasted():
    small = [torch.zeros(16, 27), torch.zeros(32, 288), torch.zeros(10, 64)]
    assert len(stack_up(small)) == 1
    large = [torch.zeros(512, 4608), torch.zeros(64, 576)]
    assert len(stack_up(large)) == 2


def test_a_parameter_without_a_gradient_stays_where_it_is():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    muon = Muon(network, learning_rate=1e-1)
    for trained in ([0, 1], [1], [0]):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        for index, layer in enumerate(network):
            for parameter in layer.parameters():
                parameter.grad = torch.ones_like(parameter) if index in trained else None
        muon.step()
        moved = [
            not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)
        ]
        assert moved == [index in trained for index in (0, 0, 1, 1)]


def test_muon_minimises_and_its_vectors_follow_adam():
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 4)
    reference = torch.nn.Parameter(network.bias.detach().clone())
    ours = Muon(network, learning_rate=1e-1)
    adam = torch.optim.Adam([reference], 1e-2)
    for step in range(5):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(step))
        network.bias.grad, reference.grad = gradient.clone(), gradient.clone()
        ours.step()
        adam.step()
    torch.testing.assert_close(network.bias, reference)


def test_each_vector_counts_its_own_gradients():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    vectors = [one for one in network.parameters() if one.ndim < 2]
    references = [torch.nn.Parameter(one.detach().clone()) for one in vectors]
    ours = Muon(network, learning_rate=1e-1)
    adam = torch.optim.Adam(references, 1e-2)
    random = torch.Generator().manual_seed(0)
    for taught in ([0], [0, 1], [0, 1, 2], [2], [0, 1, 2]):
        for place, (one, other) in enumerate(zip(vectors, references, strict=True)):
            gradient = torch.randn(4, generator=random)
            one.grad = gradient.clone() if place in taught else None
            other.grad = gradient if place in taught else None
        # Restored in between, as after a stop.
        ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        ours.step()
        adam.step()
    for one, other in zip(vectors, references, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


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


def test_what_is_dear_to_save_is_saved_seldom(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("distill.loop.time.monotonic", lambda: clock[0])
    due, saved = Every(20), []
    for cost, end in (
        (1.0, 400),
        (0.1, 800),
    ):  # 2 %: one second in fifty, and never oftener than asked for
        while clock[0] < end:
            clock[0] += 5
            if due():
                with due.paying():
                    clock[0] += cost
                saved.append(clock[0])
    apart = [round(b - a) for a, b in pairwise(saved)]
    assert saved[0] == 21 and min(apart) >= 20
    assert max(apart) <= 60 and apart[1] >= 50 and apart[-1] <= 25
    with due.paying():
        clock[0] += 1000  # one bad moment
    clock[0] += 300
    assert due()
