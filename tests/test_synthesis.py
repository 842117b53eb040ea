import copy
import dataclasses
import io
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY_FLAGS, assert_learnt, environment, tiny_options

from distill import DistillOptions, TransferSet, distill, load_images
from distill.data.augment import make_views
from distill.evaluation import evaluate, predict
from distill.files import read_log
from distill.models import Classifier, ModelSpec, load_classifier
from distill.models.frozen import Frozen
from distill.options import StudentOptions, ViewOptions
from distill.runtime import Runtime
from distill.students import build_student
from distill.update import StudentStep
from distill.views import to_input
from inversion import MNIST_SLICE, plan, synthesize_share
from inversion.cli.main import main
from inversion.cli.schema import DemoRun, VerifyRun
from inversion.cli.verbs import verify
from inversion.cli.verbs.demo import check_demo
from inversion.options import (
    AdversaryOptions,
    GeneratorOptions,
    ObjectiveOptions,
    ReplayOptions,
    SynthesisOptions,
    TeacherOptions,
    TeacherViewOptions,
)
from inversion.parts import adversary as synthesis
from inversion.parts.adversary import DrawStep, adversary_steps
from inversion.parts.adversary import ask_held_out as _ask_held_out
from inversion.parts.adversary import view_of as _view
from inversion.parts.buffer import ReplayBuffer
from inversion.parts.call import Store, draw_classes, generator_call
from inversion.parts.generator import Generator
from inversion.parts.inner import InnerLoop
from inversion.parts.sampling import record_visit
from inversion.parts.state import SynthesisState
from inversion.parts.terms import phi
from inversion.teacher import load_teacher, trained_views
from synthesis_kernels.backend import kernel_form
from synthesis_kernels.errors import EchosetError

CPU = torch.device("cpu")


def make(teacher, options, out, **more):
    return synthesize_share(
        teacher, options, out, runtime=Runtime(device="cpu", quiet=True, **more)
    )


def shard_bytes(folder):
    return [path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))]


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    """One finished tiny set, its folder and its options."""
    options = tiny_options()
    folder = tmp_path_factory.mktemp("made") / "set"
    return make(teacher, options, folder), folder, options


def test_the_set_is_balanced_and_labelled_by_the_teacher(teacher, made):
    found, folder, _ = made
    assert found.counts() == [3] * 10
    answers = predict(teacher, found.images, CPU)
    assert torch.equal(answers.argmax(1), found.labels)
    torch.testing.assert_close(answers, found.logits.float(), rtol=2e-3, atol=2e-3)
    assert found.manifest["teacher"]["weight_hash"] == teacher.weight_hash()
    assert found.manifest["input"] == {
        "channels": 1,
        "size": 28,
        "classes": 10,
        "task": "classification",
        "mean": [0.1307],
        "std": [0.3081],
    }
    assert not found.manifest["short"]
    # What the teacher's file says of its training, spelled out.
    assert found.manifest["config"]["objective"]["views"] == {
        "shift": 0.1,
        "flip": False,
        "cutout": 0.0,
    }
    assert len(list(folder.glob(".*.state"))) == 0
    TransferSet.load(folder, check_hashes=True)


def test_same_seed_same_bytes_and_another_seed_another_set(teacher, tiny, tmp_path, made):
    make(teacher, tiny, tmp_path / "again")
    make(teacher, tiny, tmp_path / "other", seed=1)
    assert shard_bytes(tmp_path / "again") == shard_bytes(made[1])
    assert shard_bytes(tmp_path / "other") != shard_bytes(made[1])


def test_a_finished_shard_is_never_made_again(teacher, made):
    _, folder, options = made
    stamp = (folder / "shard-00000-of-00001.safetensors").stat().st_mtime_ns
    make(teacher, options, folder)
    assert (folder / "shard-00000-of-00001.safetensors").stat().st_mtime_ns == stamp


def test_a_folder_with_something_else_is_left_alone(teacher, tiny, made, tmp_path):
    with pytest.raises(EchosetError, match="other options, seed or teacher"):
        make(teacher, replace(tiny, images=40), made[1])
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(EchosetError, match="choose another --out"):
        make(teacher, tiny, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_two_processes_worth_of_ranks_make_what_one_does(teacher, tiny, tmp_path):
    options = replace(tiny, images=12, shard_images=6, calls=3)
    assert make(teacher, options, tmp_path / "two", rank=1, world=2) is None
    together = make(teacher, options, tmp_path / "two", rank=0, world=2)
    make(teacher, options, tmp_path / "one")
    assert shard_bytes(tmp_path / "two") == shard_bytes(tmp_path / "one")
    assert len(together.manifest["shards"]) == 2 and len(together) == sum(together.counts()) <= 12


@pytest.mark.parametrize(
    ("banked", "mixed", "hints"),
    [(0, 0.0, 0.0), (2, 0.0, 0.0), (2, 0.5, 0.0), (2, 0.0, 20.0), (2, 0.5, 20.0)],
)
def test_state_restores_to_the_same_future(teacher, tiny, banked, mixed, hints):
    adversary = replace(tiny.adversary, views_per_image=banked, hints=hints)
    tiny = replace(tiny, adversary=adversary, views=replace(tiny.views, cutmix=mixed, mixup=mixed))
    job = plan(tiny, 10)[0]
    state = SynthesisState(teacher, job, tiny, CPU)
    for _ in range(3):
        run_call(teacher, state, tiny)
    state.best_agreement, state.best_call, state.seconds = 0.5, 2, 7.0
    copy = SynthesisState(teacher, job, tiny, CPU)
    buffer = io.BytesIO()  # through bytes, as after a kill
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    copy.load_state_dict(torch.load(buffer, weights_only=True))
    assert len(copy.buffer.hints) == (4 if hints else 0)  # asked for again
    assert all(map(torch.equal, state.buffer.hints, copy.buffer.hints))
    for each in (state, copy):
        for _ in range(2):
            run_call(teacher, each, tiny)
    assert_equal(state.state_dict(), copy.state_dict())


def test_carried_moments_blend_where_they_are(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    first = torch.zeros(2), torch.full((2,), 3.0)
    state.carry_moments(*first, 0.9)  # with nothing to blend with
    places = state.bn_average
    assert torch.equal(places[0], first[0]) and torch.equal(places[1], first[1])
    state.carry_moments(torch.ones(2), torch.ones(2), 0.9)
    torch.testing.assert_close(places[0], torch.full((2,), 0.1))
    torch.testing.assert_close(places[1], torch.full((2,), 2.8))
    state.carry_moments(torch.ones(2), torch.ones(2), 0.0)
    assert state.bn_average is places and places[0].tolist() == places[1].tolist() == [1.0, 1.0]
    assert first[1].tolist() == [3.0, 3.0]  # copied, not kept


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


def test_native_kernels_and_their_definitions_give_the_same_gradients(teacher, tiny):
    """After Adam's first update only signs would count."""
    found = []
    wanted, number, held = torch.arange(40) % 10, torch.tensor(7), torch.arange(10)
    for form in ("auto", "reference"):
        state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
        frozen = Frozen(teacher)
        inner = InnerLoop(
            frozen, state.generator, state.adversary.student, tiny, 30, torch.float32, 0
        )
        average = inner.target.mean + 0.1, inner.target.variance * 1.1
        inner.begin(torch.randn(40, 128, generator=torch.Generator().manual_seed(0)), average)
        with kernel_form(form):
            result = inner.run(wanted, wanted, number, held, adversarial=True)
        inner.end(wanted, wanted)
        gradient = torch.cat([p.grad.flatten() for p in state.generator.parameters()])
        found.append(
            (gradient, result.bn, result.alike, result.wrong_class, result.mean, result.variance)
        )
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_images_are_those_after_the_last_update(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, tiny, 30, torch.float32, 0
    )
    wanted = torch.arange(40) % 10
    inner.begin(torch.randn(40, 128, generator=torch.Generator().manual_seed(0)), None)
    for number in range(2):
        before = inner.clone(inner.noise, wanted, wanted)
        inner.run(wanted, wanted, torch.tensor(number), torch.zeros(10), adversarial=False)
    images = inner.end(wanted, wanted)
    assert (
        torch.equal(images, inner.clone(inner.noise, wanted, wanted))
        and (images - before).abs().max() > 0.01
    )


def test_what_an_inner_loop_changes_stays_where_it_is_in_memory(teacher, tiny):
    """A captured step reads and writes fixed addresses, call after call."""
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    student, wanted, held = state.adversary.student, torch.arange(40) % 10, torch.arange(10)
    inner = InnerLoop(Frozen(teacher), state.generator, student, tiny, 30, torch.float32, 0)
    average, places = (inner.target.mean.clone(), inner.target.variance.clone()), []
    for _ in range(2):
        inner.begin(torch.randn(40, 128), average)
        for number in range(3):
            inner.run(wanted, wanted, torch.tensor(number), held, adversarial=True)
        inner.end(wanted, wanted)
        state.meta_optimiser.step()
        frozen = [*inner.teacher.state_dict().values(), *inner.adversary.state_dict().values()]
        tensors = [inner.noise, *inner.average, *inner.parameters, *inner._tensors(), *frozen]
        places.append([tensor.data_ptr() for tensor in tensors])
    assert places[0] == places[1] and len(inner._tensors()) > 3 * len(inner.parameters)


def command(out):
    # With a policy, banked answers and hints of mixed views and an optimiser that goes on, a run
    # has the most state.
    flags = [
        *TINY_FLAGS,
        "--synthesis.replay.sampling=policy",
        "--synthesis.held_out=0.34",
        "--quiet",
        "--device=cpu",
    ]
    flags += [
        "--synthesis.generator.learning=plain",
        "--synthesis.adversary.views_per_image=2",
        "--synthesis.views.cutmix=0.5",
    ]
    flags += ["--synthesis.adversary.hints=20"]
    return ["synthesize", f"--out={out}", *flags]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set made without a stop."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert main(command(out)) == 0
    return out


def test_the_manifest_tells_what_was_drawn_and_what_the_bytes_depend_on(whole, tmp_path, capsys):
    manifest = TransferSet.load(whole).manifest
    calls = [event for event in read_log(whole / "log.jsonl") if event["event"] == "call"]
    assert len(manifest["raw_counts"]) == 10 and sum(manifest["raw_counts"]) == 40 * len(calls)
    assert all(
        raw >= kept for raw, kept in zip(manifest["raw_counts"], manifest["counts"], strict=True)
    )
    shard = manifest["shards"][0]
    assert (shard["step"], shard["torch"]) == ("eager", torch.__version__) and {
        "precision",
        "kernels",
    } <= shard.keys()
    # The scorecard takes it for the teacher's decisions before filtering.
    assert (
        main(
            [
                "score",
                f"made={whole}",
                f"--out={tmp_path / 's.html'}",
                "--scores.gradients=5",
                "--quiet",
                "--json",
            ]
        )
        == 0
    )
    card = json.loads(capsys.readouterr().out.splitlines()[-1])["sets"]["made"]
    assert card["raw_counts"] == manifest["raw_counts"] and 0 < card["values"]["coverage_raw"] < 1


def test_a_network_of_ones_own_is_given_back_as_it_was(teacher, tiny, tmp_path):
    mine = Classifier(copy.deepcopy(teacher.network), teacher.spec).requires_grad_(True).train()
    mine.network.head.requires_grad_(False)
    make(mine, replace(tiny, calls=1, images=10), tmp_path)
    assert all(module.training for module in mine.modules())
    assert {name for name, p in mine.named_parameters() if not p.requires_grad} == {
        "network.head.weight",
        "network.head.bias",
    }


def test_a_shard_that_changed_is_not_taken_for_finished(whole, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(whole, out)
    (state := out / ".shard-00000-of-00001.safetensors.state").write_bytes(
        b"of a run that was killed at its very end"
    )
    assert main(command(out)) == 0 and not state.exists()
    shard = next(out.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main(command(out)) == 1
    shard.unlink()
    assert main(command(out)) == 0 and shard_bytes(out) == shard_bytes(whole)


def test_a_student_learns_digits_from_a_set_of_100_images(teacher, tmp_path):
    """The smallest run that shows it: a teacher, no image, and a student far above the one in ten
    of chance.
    """
    generator = GeneratorOptions(
        width=16, inner_steps=5, learning="plain", learning_rate=1e-2, latent_rate=0.05
    )
    options = SynthesisOptions(
        images=100,
        batch=60,
        calls=8,
        patience=99,
        generator=generator,
        adversary=AdversaryOptions(steps=3),
    )
    transfer_set = make(teacher, options, tmp_path, seed=0)
    bn = [event["bn"] for event in read_log(tmp_path / "log.jsonl")]
    assert sum(bn[-3:]) < 0.95 * sum(bn[:3])
    student = build_student(StudentOptions("convnet-8"), teacher.contract, 0)
    distill(
        student,
        transfer_set,
        teacher,
        DistillOptions(steps=250, batch=64, views_per_image=4),
        runtime=Runtime(device="cpu", quiet=True),
    )
    assert (
        evaluate(
            student, load_images(MNIST_SLICE), runtime=Runtime(device="cpu", quiet=True)
        ).accuracy
        > 0.25
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_bytes(whole, tmp_path, number):
    stopped = tmp_path / "stopped"
    program = [sys.executable, "-m", "inversion.cli.main", *command(stopped)]
    process = subprocess.Popen(
        program, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while len(read_log(stopped / "log.jsonl")) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (
            process.returncode == 130
            and "run the same command again" in errors
            and "Traceback" not in errors
        )
        assert list(stopped.glob(".*.state"))
    assert not (stopped / "manifest.json").exists()
    assert main(command(stopped)) == 0
    assert shard_bytes(stopped) == shard_bytes(whole)
    calls = [event["call"] for event in read_log(stopped / "log.jsonl")]
    assert calls[-1] == read_log(whole / "log.jsonl")[-1]["call"] >= 14
    if number != signal.SIGKILL:
        assert calls == list(range(1, calls[-1] + 1))  # nothing was done twice


# The switches


def test_views_before_the_teacher_are_those_it_was_trained_on(teacher):
    def told(**views):
        return trained_views(replace(teacher.spec, notes={"views": views}))

    assert trained_views(load_teacher(TeacherOptions("cifar10")).spec) == TeacherViewOptions(
        0.125, True, 0.25
    )
    assert trained_views(teacher.spec) == TeacherViewOptions(
        shift=0.1
    )  # the bundled teacher's recipe: rotations are left out
    assert told(shift=0.125, flip=True, cutout=0.25, cutmix=1.0, rotate=0) == TeacherViewOptions(
        0.125, True, 0.25
    )
    assert told() == TeacherViewOptions(shift=0)
    assert trained_views(replace(teacher.spec, notes={})) == TeacherViewOptions()
    for name, value in (
        ("shift", 3),
        ("shift", "far"),
        ("cutout", float("nan")),
        ("cutout", True),
        ("flip", "yes"),
    ):
        with pytest.raises(
            EchosetError, match=f"notes on its views: {name} must .*--synthesis.objective.views"
        ):
            told(**{name: value})


def test_a_demo_refuses_bad_notes_before_it_deletes_anything_unless_told_better(teacher):
    odd = Classifier(teacher.network, replace(teacher.spec, notes={"views": {"shift": 3}})).eval()
    run, data, student = (
        DemoRun(),
        load_images(MNIST_SLICE),
        build_student(DemoRun().student, teacher.contract),
    )
    with pytest.raises(EchosetError, match="notes on its views: shift must lie in"):
        check_demo(run, odd, student, data)
    told = replace(run.synthesis, objective=ObjectiveOptions(views=TeacherViewOptions()))
    check_demo(replace(run, synthesis=told), odd, student, data)


def test_the_teacher_sees_each_image_in_a_view_of_its_own(teacher, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Frozen,
        "prepare",
        lambda self, x, whole=Frozen.prepare: seen.append(x) or whole(self, x),
    )
    options = replace(
        tiny, objective=replace(tiny.objective, views=TeacherViewOptions(shift=0.25, cutout=0.25))
    )
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, options, 30, torch.float32, 0
    )
    inner.begin(torch.zeros(40, 128), None)
    for number in (0, 0, 1):
        inner.clone.load_state_dict(inner.generator.state_dict())
        inner.noise.data.zero_()
        inner.run(
            torch.zeros(40, dtype=torch.long),
            torch.zeros(40, dtype=torch.long),
            torch.tensor(number),
            torch.zeros(10),
            adversarial=False,
        )
    # One and the same image forty times over (same noise, same class): only the view tells them
    # apart.
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert len(seen[0].flatten(1).unique(dim=0)) > 30
    black = (seen[0] == 0).float().mean((1, 2, 3))
    assert black.min() > 0 and black.max() < 0.5  # from outside and from the square


def one_call(teacher, options, calls=2):
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    for _ in range(calls):
        run_call(teacher, state, options)
    return state


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.generator.parameters()])


@pytest.mark.parametrize(
    "change",
    [
        {"adversary": 0.0},
        {"phi": False},
        {"bn": 0.0},
        {"classes": 0.0},
        {"bn_momentum": 0.0},
        {"spread": 0.0},
        {"views": TeacherViewOptions(shift=0.2)},
    ],
)
def test_each_term_of_the_objective_moves_the_generator(teacher, tiny, change):
    changed = replace(tiny, objective=dataclasses.replace(tiny.objective, **change))
    calls = (
        8 if "adversary" in change else 2
    )  # an untrained student decides as the teacher does nowhere
    assert not torch.equal(
        weights(one_call(teacher, tiny, calls)), weights(one_call(teacher, changed, calls))
    )


def test_without_adversary_its_student_never_reaches_the_generator(teacher, tiny):
    lonely = replace(
        tiny,
        objective=replace(tiny.objective, adversary=0.0, phi=False),
        replay=ReplayOptions(balanced_targets=False),
    )
    other_student = replace(lonely, adversary=replace(lonely.adversary, learning_rate=0.2))
    # The student's training draws from the run's random stream alike, so only its effect could make
    # a difference.
    assert torch.equal(
        weights(one_call(teacher, lonely)), weights(one_call(teacher, other_student))
    )


REPLAYS = pytest.mark.parametrize(
    "replay",
    [
        ReplayOptions(),
        ReplayOptions(replace_all=True),
        ReplayOptions(keep_all=True, balanced_targets=False),
    ],
    ids=["partial", "all at once", "growing"],
)
MIXED = pytest.mark.parametrize("mixed", [{"cutmix": 1.0}, {"mixup": 1.0}], ids=["cutmix", "mixup"])


def store(state, frozen, options, images):
    """Offer images, each decided for one class after the other."""
    logits = 9 * torch.eye(10)[torch.arange(len(images)) % 10]
    Store(frozen, state, options, torch.float32)(images, logits, torch.zeros(len(images)))


def lessons(teacher, options, calls, count, brightest=256):
    """The state after so many calls of `count` random images, and what the adversarial student saw
    and was told.
    """
    state, given, frozen = (
        SynthesisState(teacher, plan(options, 10)[0], options, CPU),
        [],
        Frozen(teacher),
    )

    def step(images, answers, weights, *hints):
        given.append((images, answers, *hints))
        return torch.zeros_like(answers)

    for state.call in range(calls):
        store(
            state, frozen, options, torch.randint(brightest, (count, 1, 28, 28), dtype=torch.uint8)
        )
        adversary_steps(DrawStep(step, frozen, state, options, torch.float32))
    return state, given


@REPLAYS
@pytest.mark.parametrize(
    "mixed", [{}, {"cutmix": 1.0}, {"mixup": 1.0}], ids=["by themselves", "cutmix", "mixup"]
)
def test_banked_answers_are_the_teachers_for_the_very_views_that_are_drawn(
    teacher, tiny, replay, mixed
):
    adversary = replace(tiny.adversary, views_per_image=3)
    options = replace(tiny, replay=replay, adversary=adversary, views=replace(tiny.views, **mixed))
    state, given = lessons(
        teacher, options, calls=8, count=20
    )  # long enough for slots to be taken again
    assert len(given) >= 6 * options.adversary.steps
    for images, answers, *none in given:
        torch.testing.assert_close(answers, teacher(images), rtol=1e-3, atol=1e-3)
        assert not none
    buffer, slots = state.buffer, torch.arange(30)
    views = (
        _view(buffer, buffer.images, slots, torch.full((30,), which), options, state.seed)
        for which in (0, 1)
    )
    first, second = (buffer.seen[:30, which] for which in (0, 1)) if mixed else views
    assert (first != second).flatten(1).any(1)[buffer.filled[:30] & ~buffer.is_held_out[:30]].all()


@REPLAYS
def test_a_mixed_view_is_kept_with_the_image_that_it_shows(teacher, tiny, replay):
    """Half of a pixel's chances are the image's own where the pasted share is uniform; another
    image has the same one in 256.
    """
    still = ViewOptions(rotate=0, scale=0, shift=0, cutmix=1.0)
    adversary = replace(tiny.adversary, views_per_image=3)
    state, _ = lessons(
        teacher, replace(tiny, replay=replay, adversary=adversary, views=still), calls=8, count=20
    )
    buffer = state.buffer
    same = (
        (buffer.seen == buffer.images[:, None])[buffer.filled & ~buffer.is_held_out].float().mean()
    )
    assert 0.35 < same < 0.8


@MIXED
@pytest.mark.parametrize("banked", [0, 2])
def test_what_is_held_out_is_mixed_into_nothing(teacher, tiny, banked, mixed, monkeypatch):
    """Held-out images are white here, all others dark; so is every view."""
    adversary = replace(tiny.adversary, views_per_image=banked, steps=30)
    options, add = (
        replace(tiny, held_out=0.4, views=ViewOptions(**mixed), adversary=adversary),
        ReplayBuffer.add,
    )

    def add_and_paint(buffer, *given):
        taken = add(buffer, *given)
        buffer.images[buffer.is_held_out] = 255
        return taken

    monkeypatch.setattr(ReplayBuffer, "add", add_and_paint)
    _, given = lessons(teacher, options, calls=3, count=40, brightest=100)
    assert 0 < torch.cat([images for images, _ in given]).amax() < 0.4


@REPLAYS
@pytest.mark.parametrize("cutmix", [0.0, 0.5])
def test_hints_are_the_teachers_features_for_the_very_views_that_are_drawn(
    teacher, tiny, replay, cutmix
):
    adversary = replace(tiny.adversary, views_per_image=2, hints=20.0)
    options = replace(
        tiny, replay=replay, adversary=adversary, views=replace(tiny.views, cutmix=cutmix)
    )
    state, given = lessons(teacher, options, calls=8, count=20)
    layers, head = state.learner.teacher_stages.layers, state.learner.teacher_stages.head
    assert len(layers) > 1 and len(given) >= 6 * options.adversary.steps
    looked, seen = copy.deepcopy(teacher), {}
    for name in layers:
        looked.network.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out})
        )
    looked.network.get_submodule(head).register_forward_pre_hook(
        lambda _, inputs: seen.update(head=inputs[0])
    )
    for images, answers, *maps, embedding in given:
        torch.testing.assert_close(answers, looked(images), rtol=1e-3, atol=1e-3)
        side = seen[layers[-1]].shape[-1]
        wanted = [
            seen[name].unflatten(3, (side, -1)).unflatten(2, (side, -1)).mean((3, 5))
            for name in layers
        ]
        for found, exact in zip(
            [*maps, embedding], [*wanted, seen["head"][:, :, None, None]], strict=True
        ):
            torch.testing.assert_close(
                found.float(), exact, rtol=0.02, atol=0.02 * exact.abs().max().item()
            )


def test_an_adversary_by_hints_learns_what_a_student_by_hints_does(teacher, tiny):
    options = replace(tiny, adversary=replace(tiny.adversary, views_per_image=2, hints=5.0))
    state, images = (
        SynthesisState(teacher, plan(options, 10)[0], options, CPU),
        torch.rand(16, 1, 28, 28),
    )
    learner, even = state.learner, torch.ones(16)
    answers, *hints = learner.ask_for_hints(images)
    step = StudentStep(state.adversary, learner.options.temperature, torch.float32, learner=learner)
    twin = copy.deepcopy(learner)
    nothing = torch.empty(0)
    loss, *_ = twin.train()(images, answers, nothing, torch.zeros(()), nothing, *hints)
    loss.backward()
    learner.train()
    step(images, answers, even, *hints)
    for mine, theirs in zip(learner.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert learner.parts["HintReaders"].layers[0].weight.grad.abs().max() > 0


def test_an_adversary_waits_for_its_first_lesson(teacher, tiny):
    late = replace(
        tiny,
        objective=replace(tiny.objective, adversary_after=4),
        adversary=replace(tiny.adversary, begins=3),
    )
    fresh = SynthesisState(teacher, plan(late, 10)[0], late, CPU).adversary.student
    waiting, begun = (one_call(teacher, late, calls).adversary for calls in (3, 4))
    assert waiting.step == 0 and begun.step == late.adversary.steps
    for mine, untouched in zip(waiting.student.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, untouched)


def test_balanced_targets_ask_for_what_lacks(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    state.buffer.filled[:-1] = state.buffer.groups[:-1] != 7
    wanted = torch.bincount(draw_classes(state.buffer, tiny, state.random), minlength=10)
    assert wanted[7] == 22 and wanted.sum() == 40  # 2 of the even half and all of the other
    off = replace(tiny, replay=ReplayOptions(balanced_targets=False))
    assert (
        torch.bincount(draw_classes(state.buffer, off, state.random), minlength=10).tolist()
        == [4] * 10
    )


def test_more_classes_than_places_in_a_batch_all_get_their_turn(tiny):
    quotas, random = torch.full((70,), 3), torch.Generator().manual_seed(0)
    buffer = SimpleNamespace(quotas=quotas, classes=70, counts=lambda: quotas)
    for balanced, places in ((True, 20), (False, 40)):
        options = replace(tiny, replay=ReplayOptions(balanced_targets=balanced))
        alike = [draw_classes(buffer, options, random)[:places].tolist() for _ in range(40)]
        assert all(len(set(classes)) == places for classes in alike)
        assert set().union(*alike) == set(range(70))


def test_partial_refresh_against_replacing_everything(teacher, tiny):
    def changed_slots(replay, batch):
        """Feed batches with two images of each class; how many of the 30 slots does each replace
        once the buffer is full?
        """
        options, changes, frozen = replace(tiny, replay=replay), [], Frozen(teacher)
        state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
        images, logits = (
            torch.zeros(batch, 1, 28, 28, dtype=torch.uint8),
            9 * torch.eye(10)[torch.arange(batch) % 10],
        )
        for state.call in range(1, 9):
            before = state.buffer.round[:-1].clone()
            Store(frozen, state, options, torch.float32)(images, logits, torch.zeros(batch))
            changes.append(int((state.buffer.round[:-1] != before).sum()))
        assert state.buffer.counts().tolist() == [3] * 10
        return changes

    assert changed_slots(ReplayOptions(refresh=0.0), 20) == [20, 10, 0, 0, 0, 0, 0, 0]
    assert changed_slots(ReplayOptions(refresh=0.3), 20) == [
        20,
        20,
        10,
        10,
        10,
        10,
        10,
        10,
    ]  # one of three in each class
    # New images wait until they can replace everything, which takes two calls.
    assert changed_slots(ReplayOptions(replace_all=True), 20)[2:] == [0, 30, 0, 30, 0, 30]


def test_uniform_sampling_changes_the_adversary(teacher, tiny):
    uniform = replace(tiny, replay=ReplayOptions(sampling="uniform"))
    students = [
        one_call(teacher, options, 4).adversary.student.weight_hash() for options in (tiny, uniform)
    ]
    assert students[0] != students[1]


def test_it_stops_when_agreement_no_longer_rises(teacher, tiny, tmp_path):
    options = replace(tiny, calls=40, patience=4)
    made = make(teacher, options, tmp_path / "set")
    calls = read_log(tmp_path / "set" / "log.jsonl")
    assert len(calls) == made.manifest["shards"][0]["calls"] < 40
    full = best = best_call = 0
    for call in calls:
        if (
            not full or call["held_out_agreement"] > best + 1e-3
        ):  # what it was before the buffer was full does not count
            best, best_call = call["held_out_agreement"], call["call"]
        full = sum(call["counts"]) == 30
    assert len(calls) - best_call == 4
    assert made.manifest["shards"][0]["held_out_agreement"] == round(best, 4)


def test_fewer_images_than_classes(teacher, tiny, tmp_path):
    found = make(teacher, replace(tiny, images=1, calls=30), tmp_path / "set")
    assert found.counts() == [1] + 9 * [0] and found.manifest["short"] == {}


def test_a_class_that_falls_short_is_named(teacher, tiny, tmp_path):
    found = make(teacher, replace(tiny, images=80, calls=1), tmp_path / "set")
    short = {str(label): 8 - count for label, count in enumerate(found.counts()) if count < 8}
    assert short and found.manifest["short"] == short


def test_the_adversarial_student_learns_in_calls_beyond_those_planned(teacher, tiny):
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    state.buffer.images[:-1], state.buffer.filled[:-1] = (
        torch.randint(0, 256, (30, 1, 28, 28)).byte(),
        True,
    )
    state.adversary.step = tiny.calls * tiny.adversary.steps
    before = [parameter.detach().clone() for parameter in state.adversary.student.parameters()]
    train = StudentStep(state.adversary, 20.0, torch.float32)
    adversary_steps(DrawStep(train, Frozen(teacher), state, tiny, torch.float32))
    assert_learnt(state.adversary.student, before)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: {"images": 0}, "images"),
        (lambda: {"batch": 1}, "batch"),
        (lambda: {"calls": 0}, "calls"),
        (lambda: {"held_out": 1.0}, "held_out"),
        (lambda: {"generator": GeneratorOptions(inner_steps=0)}, "inner_steps"),
        (lambda: {"generator": GeneratorOptions(blocks=-1)}, "generator.blocks"),
        (lambda: {"generator": GeneratorOptions(smooth=float("nan"))}, "generator.smooth"),
        (lambda: {"replay": ReplayOptions(refresh=2.0)}, "refresh"),
        (lambda: {"replay": ReplayOptions(half_life=float("inf"))}, "half_life"),
        (lambda: {"replay": ReplayOptions(beta=1.5)}, "beta"),
        (lambda: {"objective": ObjectiveOptions(bn_momentum=1.0)}, "bn_momentum"),
        (lambda: {"objective": ObjectiveOptions(gamma=-1.0)}, "gamma"),
        (
            lambda: {"objective": ObjectiveOptions(views=TeacherViewOptions(shift=3))},
            "objective.views: shift",
        ),
        (
            lambda: {"adversary": AdversaryOptions(hints=-1)},
            "adversary.hints must be a number of at least 0",
        ),
        (
            lambda: {"adversary": AdversaryOptions(hints=20)},
            "hints are kept for the views in adversary.views_per_image, which is 0",
        ),
        (lambda: {"adversary": AdversaryOptions(views_per_image=-1)}, "adversary.views_per_image"),
        (
            lambda: {"adversary": AdversaryOptions(begins=1)},
            "adversary_after 1 would ask an adversarial student that has learnt nothing",
        ),
        (
            lambda: {"adversary": AdversaryOptions(begins=14)},
            "begins 14 leaves the adversarial student nothing to learn in 14 calls",
        ),
        (
            lambda: {"adversary": AdversaryOptions(student=StudentOptions(weights="none.pt"))},
            "no weights file at none.pt",
        ),
    ],
)
def test_options_out_of_range_are_named(teacher, tiny, tmp_path, change, message):
    with pytest.raises(EchosetError, match=message):
        make(teacher, replace(tiny, **change()), tmp_path / "set")


def test_hints_that_cannot_be_had_are_refused_before_the_folder_is_claimed(teacher, tiny, tmp_path):
    options = replace(tiny, adversary=replace(tiny.adversary, views_per_image=2, hints=20.0))

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = torch.nn.BatchNorm1d(784), torch.nn.Linear(784, 10)
            self.norm.running_mean.fill_(0.1)

        def forward(self, images):
            return self.head(self.norm(images.flatten(1)))

    flat = Classifier(
        Flat(), ModelSpec("flat", channels=1, size=28, classes=10, mean=(0.1307,), std=(0.3081,))
    )
    with pytest.raises(EchosetError, match=r"adversary\.hints: no layer of flat gives maps"):
        make(flat, options, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "channels, size, classes", [(1, 28, 10), (3, 32, 2), (3, 17, 5), (1, 64, 3)]
)
def test_generator_makes_any_square_size(channels, size, classes):
    for blocks in (0, 2):
        generator = Generator(channels, size, classes, latent=16, width=4, blocks=blocks)
        images = generator(torch.randn(3, 16), *(torch.arange(3) % classes,) * 2)
        assert images.shape == (3, channels, size, size) and images.min() >= 0 and images.max() <= 1


def test_blocks_let_one_place_depend_on_another_far_away():
    for blocks, reach in (
        (0, 8),
        (2, 16),
    ):  # rows of the image that the seed's first row reaches, by the convolutions' sizes
        generator = Generator(1, 32, 2, latent=16, width=4, blocks=blocks).eval()
        generator.seed.weight.data.view(8, 8, 8, 16)[:, 1:] = (
            0  # noise reaches the seed's first row only
        )
        with torch.no_grad():
            one, other = (
                generator(torch.randn(4, 16), *(torch.zeros(4).long(),) * 2) for _ in range(2)
            )
        touched = ((one - other).abs().amax((0, 1, 3)) > 0).sum()
        assert touched == reach


def test_a_smooth_seed_map_falls_off_with_frequency_as_asked():
    white, smooth = (
        Generator(3, 32, 10, 64, 32, smooth=power).seed.weight.detach() for power in (0.0, 1.5)
    )
    assert smooth.std() == pytest.approx(white.std().item(), rel=0.01)
    amplitude = (
        torch.fft.fft2(smooth.view(64, 8, 8, 64), dim=(1, 2)).abs().square().mean((0, 3)).sqrt()
    )
    for axis in (amplitude[0], amplitude[:, 0]):
        assert (axis[0] / axis[1]).item() == pytest.approx(
            2**1.5, rel=0.1
        )  # the mean counts as half a period
        assert (axis[1] / axis[4]).item() == pytest.approx(4**1.5, rel=0.1)
        torch.testing.assert_close(axis[1:4], axis[5:].flip(0))


def test_plain_learning_keeps_what_a_call_has_learnt(teacher, tiny):
    plain = replace(tiny, generator=replace(tiny.generator, learning="plain"))
    state = SynthesisState(teacher, plan(plain, 10)[0], plain, CPU)
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, plain, 30, torch.float32, 0
    )
    drawn, wanted = state.generator.seed.weight.clone(), torch.arange(40) % 10
    for call in range(1, 3):
        inner.begin(torch.randn(40, 128), None)
        for number in range(3):
            inner.run(wanted, wanted, torch.tensor(number), torch.zeros(10), adversarial=False)
        inner.end(wanted, wanted)
        for mine, learnt in zip(state.generator.learned(), inner.clone.learned(), strict=True):
            assert torch.equal(mine, learnt)
        assert torch.equal(state.generator.seed.weight, drawn) and not torch.equal(
            inner.clone.seed.weight, drawn
        )
        moments = inner.optimiser.state
        assert moments[inner.clone.image.weight]["step"] == 3 * call  # goes on
        assert (
            moments[inner.noise]["step"] == moments[inner.clone.seed.weight]["step"] == 3
        )  # new noise, and the drawn seed map


def test_a_picture_that_the_seed_map_gives_every_image_does_not_come_through():
    generator, noise, wanted = (
        Generator(3, 32, 5, latent=16, width=4),
        torch.randn(40, 16),
        torch.arange(40) % 5,
    )
    before = generator(noise, wanted, wanted)
    assert (generator(noise + 3 * torch.randn(16), wanted, wanted) - before).abs().max() < 1e-4


def test_the_seed_map_stays_as_it_was_drawn_and_all_else_is_learned(teacher, tiny):
    drawn = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU).generator.state_dict()
    learned = dict(one_call(teacher, tiny).generator.named_parameters())
    assert [name for name, value in learned.items() if torch.equal(value, drawn[name])] == [
        "seed.weight"
    ]


def test_a_foreign_colour_teacher_of_odd_size_and_few_classes(tmp_path):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
    )
    network.train()
    for _ in range(20):
        network(torch.rand(16, 3, 19, 19))
    teacher = Classifier(
        network, ModelSpec("mine", channels=3, size=19, classes=3, mean=(0.5, 0.4, 0.3), std=(0.2,))
    )
    options = SynthesisOptions(
        images=4,
        batch=16,
        calls=10,
        generator=GeneratorOptions(inner_steps=2, width=4),
        objective=ObjectiveOptions(classes=5.0),
        adversary=AdversaryOptions(steps=2, batch=16),
    )
    made = make(teacher, options, tmp_path / "set")
    assert made.images.shape[1:] == (3, 19, 19)
    assert json.dumps(made.manifest["input"]["mean"]) == "[0.5, 0.4, 0.3]"


def test_fast_datafree_by_config_keeps_every_image_and_its_student(teacher, tiny, tmp_path):
    replay = ReplayOptions(keep_all=True, balanced_targets=False, sampling="uniform")
    options = replace(
        tiny,
        calls=4,
        objective=replace(tiny.objective, phi=False),
        replay=replay,
        adversary=replace(tiny.adversary, keep=True),
    )
    made = make(teacher, options, tmp_path / "set")
    assert len(made) == 4 * 40 and made.manifest["short"] == {}
    assert made.round.tolist() == [call for call in range(4) for _ in range(40)]
    assert not made.images[40:80].equal(made.images[:40])
    student = load_classifier(tmp_path / "set" / "adversary-00000.safetensors")
    assert student.spec.model == tiny.adversary.student.model
    assert verify.execute(VerifyRun(set=str(tmp_path / "set"), quiet=True)) == 0
    with pytest.raises(EchosetError, match="keep_all has no quotas"):
        make(teacher, replace(options, replay=ReplayOptions(keep_all=True)), tmp_path / "other")


def test_each_step_of_the_adversary_is_weighted_scheduled_and_remembered(
    teacher, tiny, monkeypatch
):
    adversary, replay = (
        replace(tiny.adversary, begins=2, learning_rate=0.02),
        ReplayOptions(alpha=0.5, beta=0.25),
    )
    objective = replace(tiny.objective, adversary_after=3)
    options = replace(tiny, adversary=adversary, replay=replay, objective=objective)
    state, frozen, given, visits = (
        SynthesisState(teacher, plan(options, 10)[0], options, CPU),
        Frozen(teacher),
        [],
        [],
    )
    store(state, frozen, options, torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8))
    buffer, odd = state.buffer, torch.arange(16)[:, None] % 2 > 0
    buffer.priority[:-1] = torch.rand(30) + 0.1
    state.call, state.adversary.step = 4, 7

    def train(images, answers, importance):
        logits = torch.where(odd, -answers, answers / 2)  # every second decision is another one
        given.append(
            (
                images,
                answers,
                importance,
                logits,
                state.adversary.optimiser.param_groups[0]["lr"].item(),
            )
        )
        state.adversary.step += 1
        return logits

    def remember(buffer, drawn, apart, importance):
        visits.append((drawn, apart, importance, buffer.priority.clone()))
        record_visit(buffer, drawn, apart, importance)

    monkeypatch.setattr(synthesis, "record_visit", remember)
    figures = adversary_steps(DrawStep(train, frozen, state, options, torch.float32))
    assert len(given) == 3 and figures["agreement"].item() == pytest.approx(0.5)
    allowed = buffer.filled & ~buffer.is_held_out
    for step, (lesson, visit) in enumerate(zip(given, visits, strict=True), start=7):
        (images, answers, importance, logits, rate), (drawn, apart, kept, priority) = lesson, visit
        assert rate == pytest.approx(
            0.02 * 0.5 * (1 + math.cos(math.pi * (step + 0.5) / 36)), rel=1e-5
        )  # (14 − 2)·3 steps
        view = step * 16 + torch.arange(16)
        torch.testing.assert_close(
            images, make_views(buffer.images, drawn, view, options.views, state.seed)
        )
        torch.testing.assert_close(answers, teacher(images), rtol=1e-3, atol=1e-3)
        chances = (priority + 1e-3).sqrt() * allowed
        exact = (chances / chances.sum() * allowed.sum())[drawn] ** -(0.25 + 0.75 * step / 36)
        torch.testing.assert_close(importance, exact / exact.max(), rtol=1e-4, atol=1e-5)
        assert torch.equal(kept, importance)
        log_p, log_q = answers.log_softmax(1), logits.log_softmax(1)
        torch.testing.assert_close(
            apart, (log_p.exp() * (log_p - log_q)).sum(1), rtol=1e-3, atol=1e-4
        )


def test_held_out_images_are_asked_of_the_student_as_it_stands(teacher, tiny):
    """Asking leaves nothing in it, and in the buffer their priorities alone; empty slots don't
    count.
    """
    state = SynthesisState(teacher, plan(tiny, 10)[0], tiny, CPU)
    buffer, student = state.buffer, state.adversary.student
    buffer.images[:-1] = torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8)
    buffer.filled[:-1] = True
    buffer.filled[torch.where(buffer.is_held_out)[0][:2]] = False
    held = torch.where(buffer.is_held_out & buffer.filled)[0]
    with torch.no_grad():
        own = student.eval()(to_input(buffer.images[held]))
    assert len(held) == 8
    buffer.logits[held] = torch.cat([20 * own[:6], -20 * own[6:]])  # six are decided alike
    buffer.priority[:-1] = torch.arange(30.0)
    before = {name: value.clone() for name, value in student.train().state_dict().items()}
    log_p, log_q = buffer.logits[held].log_softmax(1), own.log_softmax(1)
    apart, expected = (log_p.exp() * (log_p - log_q)).sum(1), buffer.priority.clone()
    expected[held] = apart
    agreement, mean = _ask_held_out(state, torch.float32)
    assert agreement == 0.75 and mean.item() == pytest.approx(apart.mean().item(), rel=1e-3)
    torch.testing.assert_close(buffer.priority, expected, rtol=1e-3, atol=1e-4)
    assert_equal(dict(student.state_dict()), before)


def test_what_a_generator_call_asks_for_and_tells(teacher, tiny, monkeypatch):
    asked, run = [], InnerLoop.run

    def watched(inner, wanted, targets, view, held, adversarial):
        asked.append(
            (
                wanted,
                int(view),
                held.tolist(),
                adversarial,
                run(inner, wanted, targets, view, held, adversarial),
            )
        )
        return asked[-1][-1]

    monkeypatch.setattr(InnerLoop, "run", watched)
    options = replace(tiny, objective=replace(tiny.objective, adversary_after=2, gamma=1.5))
    state, frozen = SynthesisState(teacher, plan(options, 10)[0], options, CPU), Frozen(teacher)
    inner = InnerLoop(
        frozen, state.generator, state.adversary.student, options, 30, torch.float32, 0
    )
    for state.call in range(4):
        asked.clear()
        held = state.buffer.counts()
        images, logits, rank, figures = generator_call(inner, teacher, state, options)
        wanted, found = asked[0][0], asked[-1][-1]
        assert [view for _, view, *_ in asked] == [3 * state.call + step for step in range(3)]
        assert all(
            step[0] is wanted and step[2:4] == (held.tolist(), state.call >= 2) for step in asked
        )
        torch.testing.assert_close(logits, teacher(to_input(images)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rank, phi(logits, held, 30, 1.5))
        hit = (logits.argmax(1) == wanted).float().mean()
        means = {"classes": found.wrong_class.mean(), "adversary": found.fooling.mean()}
        assert_equal(figures, {"bn": found.bn, "alike": found.alike, "hit": hit} | means)
        Store(frozen, state, options, torch.float32)(images, logits, rank)


def test_what_waits_to_replace_everything_says_what_is_lacking(teacher, tiny, monkeypatch):
    options, asked, run = replace(tiny, replay=ReplayOptions(replace_all=True)), [], InnerLoop.run
    monkeypatch.setattr(
        InnerLoop, "run", lambda inner, *given: asked.append(given) or run(inner, *given)
    )
    state = SynthesisState(teacher, plan(options, 10)[0], options, CPU)
    state.buffer.filled[:-1], state.staged.filled[:3] = (
        True,
        True,
    )  # of what waits, the first class is complete
    inner = InnerLoop(
        Frozen(teacher), state.generator, state.adversary.student, options, 30, torch.float32, 0
    )
    generator_call(inner, teacher, state, options)
    wanted, _, _, held, _ = asked[0]
    assert held.tolist() == [3] + [0] * 9 and (wanted == 0).sum() == 2  # of the even half alone


@pytest.mark.parametrize("half_life, gone", [(0.0, 1), (10.0, 0)])
def test_age_has_the_say_that_the_options_give_it(teacher, tiny, half_life, gone):
    options = replace(tiny, replay=ReplayOptions(refresh=0.3, half_life=half_life))
    state, frozen = SynthesisState(teacher, plan(options, 10)[0], options, CPU), Frozen(teacher)
    one_each = torch.zeros(10, 1, 28, 28, dtype=torch.uint8)
    for state.call in (0, 10, 20):
        store(state, frozen, options, one_each)
    state.buffer.priority[:-1] = torch.tensor([5.0, 2.6, 4.0]).repeat(
        10
    )  # at call 20 worth 1.25, 1.3 and 4
    store(state, frozen, options, one_each)
    expected = [20 if slot == gone else 10 * slot for slot in range(3)]
    assert state.buffer.round[:-1].view(10, 3).tolist() == [expected] * 10
