"""A set that carries its teacher's answers, and students that learn from it alone."""

import json
from dataclasses import replace

import pytest
import torch
from collecting import PLAIN, linear_teacher, make, shard_bytes
from safetensors.torch import load_file

from distill import (
    DistillOptions,
    StudentOptions,
    TransferSet,
    ViewOptions,
    add_answers,
    build_student,
    distill,
    export,
    merge,
    subsample,
)
from distill import views as views_module
from distill.data.augment import make_views, shows_only
from distill.loop import Interrupted, StopFlag
from distill.runtime import Runtime
from distill.views import ask
from inversion import load_teacher
from inversion.filling import fill_short
from synthesis_kernels.errors import EchosetError

QUIET = Runtime(device="cpu", precision="float32", quiet=True)
BLENDED = ViewOptions(cutmix=0.5, mixup=0.3)
LESSON = DistillOptions(steps=12, batch=16, views_per_image=3, views=BLENDED)
NAMES = ["answers-00000-of-00002.safetensors", "answers-00001-of-00002.safetensors"]
TAUGHT = ["--student=convnet-4", "--distillation.steps=4", "--device=cpu"]


@pytest.fixture(scope="module")
def asked():
    return linear_teacher(last=0.0)


@pytest.fixture
def folder(asked, tmp_path):
    out = tmp_path / "set"
    make(asked, ("smooth",), replace(PLAIN, shard_images=20), out)
    add_answers(out, asked, 3, BLENDED, replace(QUIET, seed=7))
    return out


def taught(data, teacher, options=LESSON, seed=7, **more):
    student = build_student(StudentOptions("convnet-4"), data.manifest["input"], seed)
    return distill(student, data, teacher, options, runtime=replace(QUIET, seed=seed), **more)


def test_the_answers_are_the_teachers_to_each_view(folder, asked):
    data = TransferSet.load(folder)
    answers = data.answers
    assert answers.tensor.shape == (40, 3, 4) and answers.tensor.dtype == torch.float16
    assert [file["file"] for file in answers.files] == NAMES and len(answers) == 40
    index = torch.tensor([0, 25, 39])
    view = torch.tensor([2, 0, 1])
    images = make_views(data.images, index, view, answers.views, answers.seed)
    torch.testing.assert_close(
        answers.tensor[index, view].float(), ask(asked, images, torch.float32), rtol=1e-3, atol=1e-3
    )
    assert load_file(folder / NAMES[1])["answers"].shape == (20, 3, 4)


def test_a_student_learns_the_same_without_the_teacher(folder, asked):
    data = TransferSet.load(folder)
    alone = taught(data, None)
    beside = taught(data, asked)
    before = taught(replace(data, answers=None), asked)
    images = data.images.float() / 255
    for other, gap in ((beside, 0), (before, 0.1)):
        torch.testing.assert_close(alone.student(images), other.student(images), rtol=gap, atol=gap)
    assert alone.agreement == beside.agreement
    # Of the same views, fewer may be shown.
    fewer = replace(LESSON, views_per_image=2)
    assert taught(data, None, fewer).steps == LESSON.steps


def test_the_sets_own_seed_decides_the_views(folder, asked):
    data = TransferSet.load(folder)
    assert taught(data, None, seed=1).student.weight_hash() == (
        taught(data, asked, seed=1).student.weight_hash()
    )
    assert taught(data, None, seed=1).student.weight_hash() != (
        taught(data, None, seed=2).student.weight_hash()
    )


def test_another_teacher_is_asked_itself(folder):
    data = TransferSet.load(folder)
    other = linear_teacher(last=2.0)
    assert taught(data, other).student.weight_hash() == (
        taught(replace(data, answers=None), other).student.weight_hash()
    )
    with pytest.raises(EchosetError, match="made by another teacher"):
        add_answers(folder, other, 3, BLENDED, QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"hints": None}}, "loss hints asks the teacher itself, and the set carries its"),
        ({"loss": {"hinton": 1.0, "bss": None}}, "loss bss asks the teacher itself"),
        ({"views_per_image": 4}, "views_per_image 3, not 4"),
        ({"views": ViewOptions(mixup=0.3)}, r"views.cutmix 0.5, not 0.0\); ask for these, or give"),
    ],
)
def test_what_answers_alone_can_not_teach_is_refused(folder, change, message):
    with pytest.raises(EchosetError, match=message):
        taught(TransferSet.load(folder), None, replace(LESSON, **change))


def test_a_set_without_answers_needs_its_teacher(folder):
    with pytest.raises(EchosetError, match="or a set that carries its teacher's answers"):
        taught(replace(TransferSet.load(folder), answers=None), None)


def test_they_are_read_and_checked_at_first_use_alone(folder, run, refused):
    path = folder / NAMES[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    data = TransferSet.load(folder, check_hashes=True)
    taught(data, None, replace(LESSON, labels="data", loss={"labels": 1.0}))
    with pytest.raises(EchosetError, match=rf"{NAMES[1]} has changed since it was made"):
        taught(data, None)
    assert f"{NAMES[1]} has changed" in refused("verify", f"--set={folder}")
    path.unlink()
    assert f"{NAMES[1]} is missing" in refused("verify", f"--set={folder}")
    path.write_bytes(whole)
    assert "to 3 views of each image" in run("verify", f"--set={folder}").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": []}, "are not those of its shards"),
        ({"files": [{"file": "../x", "sha256": "0" * 64, "count": 20}] * 2}, "not those of its"),
        ({"per_image": 0}, "are to 0 views an image"),
        ({"seed": "x"}, "lacks per_image, seed or files"),
        ({"views": {"spin": 1}}, "views that can't be made: .*spin"),
    ],
)
def test_a_manifest_that_says_what_can_not_be_is_refused(folder, change, message):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["answers"] |= change
    path.write_text(json.dumps(manifest))
    with pytest.raises(EchosetError, match=message):
        TransferSet.load(folder)


def test_other_answers_take_their_place_and_equal_ones_stay(folder, asked):
    shards = shard_bytes(folder)
    stamp = (folder / NAMES[0]).stat().st_mtime_ns
    add_answers(folder, asked, 3, BLENDED, replace(QUIET, seed=7))
    assert (folder / NAMES[0]).stat().st_mtime_ns == stamp
    (folder / NAMES[0]).unlink()
    add_answers(folder, asked, 3, BLENDED, replace(QUIET, seed=7))
    assert add_answers(folder, asked, 2, BLENDED, QUIET).answers.tensor.shape == (40, 2, 4)
    assert shard_bytes(folder) == shards
    assert not list(folder.glob("answers-*.state"))


def test_asking_that_was_stopped_goes_on_to_the_same_bytes(folder, asked, monkeypatch):
    class StopsAfterTwo(StopFlag):
        raised = property(lambda self: next(looks), lambda self, value: None)

    monkeypatch.setattr(views_module, "CHUNK", 15)
    wanted = (folder, asked, 4, BLENDED, QUIET)
    looks = iter([False, True])
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="the set's answers"):
        patch.setattr("distill.loop.StopFlag", StopsAfterTwo)
        add_answers(*wanted)
    assert TransferSet.load(folder).answers is None and list(folder.glob("answers-*.state"))
    add_answers(*wanted)
    whole = [(folder / name).read_bytes() for name in NAMES]
    add_answers(folder, asked, 1, BLENDED, QUIET)
    add_answers(*wanted)
    assert [(folder / name).read_bytes() for name in NAMES] == whole


def test_a_set_that_gets_or_loses_images_loses_its_answers(asked, folder, tmp_path):
    data = TransferSet.load(folder)
    for derived in (merge([data, data]), subsample(data, 20)):
        copied = TransferSet.load(export(derived, tmp_path / str(len(derived)), "set"))
        assert derived.answers is None and copied.answers is None

    short = tmp_path / "short"
    rare = linear_teacher()
    made = make(rare, ("smooth",), replace(PLAIN, images=400, draws=2.0), short)
    assert made.manifest["short"]
    carrying = add_answers(short, rare, 2, BLENDED, QUIET)
    filled = fill_short(carrying, rare, ("augment", "mixup"), short, runtime=QUIET)
    assert len(filled) > len(carrying) and filled.answers is None
    assert not list(short.glob("answers-*"))


def test_what_is_held_out_is_in_no_view(folder):
    pool = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    allowed = torch.arange(20) % 4 > 0
    pool[~allowed] = 255
    options = ViewOptions(rotate=0, scale=0, shift=0, mixup=0.5, cutmix=0.5)
    numbers = torch.arange(20 * 9)
    index, view = numbers // 9, numbers % 9
    shown = shows_only(allowed, index, view, options, 5)
    bright = make_views(pool, index, view, options, 5).amax((1, 2, 3)) > 0
    assert not (bright & shown).any()
    assert 0.3 < shown.float().mean() < 0.8
    assert not (~bright & ~shown)[allowed[index]].float().mean() > 0.2
    held_out = replace(LESSON, patience=1, steps=100)
    learnt = taught(TransferSet.load(folder), None, held_out)
    assert learnt.held_out_agreement is not None and learnt.steps <= 100


@pytest.mark.slow
def test_the_command_line_teaches_where_the_teacher_is_gone(run, refused, tmp_path):
    made = tmp_path / "set"
    collect = ["collect", "noise", f"--out={made}", "--images=12", "--collection.balanced=false"]
    plain = run(*collect, "--device=cpu", "--answers=0")
    bytes_before = shard_bytes(made)
    assert "views of each" not in plain.stdout and TransferSet.load(made).answers is None
    run(*collect, "--device=cpu")
    assert TransferSet.load(made).answers.per_image == 16
    told = run(*collect, "--device=cpu", "--answers=5").stdout
    assert "the teacher's answers to 5 views of each" in told and shard_bytes(made) == bytes_before
    answers = TransferSet.load(made).answers
    assert answers.per_image == 5 and answers.views == DistillOptions().views
    checked = json.loads(
        run("verify", f"--set={made}", "--teacher=mnist", "--json").stdout.splitlines()[-1]
    )
    assert checked["views_answered"] == 60 and checked["largest_answer_gap"] < 0.3

    (made / "teacher.yaml").write_text("model: /gone.safetensors\n")
    lesson = ["distill", f"--set={made}", f"--out={tmp_path / 'out'}", *TAUGHT]
    done = run(*lesson)
    assert "no teacher is asked" in done.stderr
    assert "finished already" in run(*lesson).stdout
    student = json.loads((tmp_path / "out" / "student.json").read_text())
    assert student["options"]["distillation"]["views_per_image"] == 5
    assert student["teacher"] == load_teacher().spec.model
    run("report", f"--run={tmp_path / 'out'}")
    said = refused(*lesson, "--loss", "hinton", "at")
    assert "/gone.safetensors, which is gone" in said and "loss at asks the teacher itself" in said
    said = refused(*lesson, "--distillation.views_per_image=6")
    assert "views_per_image 5, not 6" in said


@pytest.mark.slow
def test_more_calls_drop_answers(teacher, tiny, tmp_path):
    from inversion import synthesize

    synthesize(teacher, replace(tiny, calls=8), tmp_path, QUIET)
    kept = add_answers(tmp_path, teacher, 2, BLENDED, QUIET)
    assert synthesize(teacher, replace(tiny, calls=8), tmp_path, QUIET).answers == kept.answers
    assert synthesize(teacher, replace(tiny, calls=10), tmp_path, QUIET).answers is None
    assert not list(tmp_path.glob("answers-*"))


@pytest.mark.slow
def test_a_set_of_photographs_is_taught_by_its_teacher_while_that_is_there(run, refused, tmp_path):
    made = tmp_path / "set"
    collect = ["collect", "noise", f"--out={made}", "--images=12", "--collection.balanced=false"]
    run(*collect, "--teacher=cifar10-small", "--device=cpu", "--answers=2")
    assert TransferSet.load(made).answers.views.flip
    lesson = ["distill", f"--set={made}", f"--out={tmp_path / 'out'}", "--overwrite", *TAUGHT]
    there = run(*lesson, "--json")
    assert "no teacher is asked" not in there.stderr and "20 hints" in there.stdout
    assert "no teacher is asked" in run(*lesson, "--loss=hinton").stderr
    (made / "teacher.yaml").write_text("model: /gone.safetensors\n")
    gone = run(*lesson)
    assert "it is not at hand" in gone.stderr and "1 hinton" in gone.stdout
    (made / "teacher.yaml").write_text("model: hues.Hues\n")
    assert "it needs --trust, so that its answers in" in run(*lesson).stderr
    assert "loss hints asks the teacher itself" in refused(*lesson, "--loss", "hinton", "hints")


@pytest.mark.slow
def test_a_demo_teaches_from_the_answers_that_its_set_carries(run, few, tmp_path):
    from conftest import SHORT, TINY_FLAGS

    flags = [f"--out={tmp_path}", f"--data={few}", *TINY_FLAGS, *SHORT, "--answers=2"]
    run("demo", *flags)
    made = TransferSet.load(tmp_path / "set")
    assert made.answers.per_image == 2 and made.answers.seed == 3
    assert not list(tmp_path.rglob("answers-*.state"))
