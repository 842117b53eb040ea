"""What a synthesis makes: a balanced set, labelled by its teacher, the same for the same seed."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from synthesizing import CPU, make, shard_bytes

from distill import DistillOptions, TransferSet, distill, load_images
from distill.evaluation import evaluate, predict
from distill.files import read_log
from distill.models import Classifier, ModelSpec, load_classifier
from distill.options import StudentOptions
from distill.runtime import Runtime
from distill.students import build_student
from inversion import MNIST_SLICE
from inversion.cli.schema import VerifyRun
from inversion.cli.verbs import verify
from inversion.options import (
    AdversaryOptions,
    GeneratorOptions,
    ObjectiveOptions,
    ReplayOptions,
    SynthesisOptions,
)
from synthesis_kernels.errors import EchosetError


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


def test_a_network_of_ones_own_is_given_back_as_it_was(teacher, tiny, tmp_path):
    mine = Classifier(copy.deepcopy(teacher.network), teacher.spec).requires_grad_(True).train()
    mine.network.head.requires_grad_(False)
    make(mine, replace(tiny, calls=1, images=10), tmp_path)
    assert all(module.training for module in mine.modules())
    assert {name for name, p in mine.named_parameters() if not p.requires_grad} == {
        "network.head.weight",
        "network.head.bias",
    }


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
