import json
from dataclasses import replace

import numpy as np
import torch
from conftest import SHORT, STUDENT, last_json

from distill import (
    Classifier,
    ModelSpec,
    build_classifier,
    load_classifier,
    load_images,
    save_classifier,
)
from distill.evaluation import Evaluation
from inversion import load_teacher


def test_the_verbs_work_on_each_others_files(demo, run, few, tmp_path):
    made_set = f"--set={demo[1] / 'set'}"
    verified = last_json(run("verify", made_set, "--teacher=mnist", "--json"))
    assert verified["balanced"]
    assert verified["labels_differ"] == 0
    assert verified["largest_logit_gap"] < 2e-3
    flags = [f"--out={tmp_path}", "--student=lenet5", *SHORT]
    student = last_json(run("distill", made_set, *flags, "--json"))["student"]
    flags = [f"--model={student}", "--against=mnist", f"--data={few}", "--attacks=2"]
    judged = last_json(run("evaluate", *flags, "--json"))
    assert judged["images"] == 200 and 0 <= judged["agreement"] <= 1
    page = tmp_path / "r.html"
    written = last_json(run("report", f"--run={demo[1] / 'set'}", f"--out={page}", "--json"))
    assert written["report"] == str(page)
    assert page.is_file()
    # A student is a model file like any other, so it can be looked at, and teach.
    assert last_json(run("inspect", f"--teacher={student}", "--json"))["parameters"] == 61_932


def test_sets_are_merged_drawn_from_and_exported(demo, run, refused, tmp_path):
    made = demo[1] / "set"
    told = last_json(run("export", made, f"--out={tmp_path / 'f'}", "--images=20", "--json"))
    assert told == {
        "out": str(tmp_path / "f"),
        "form": "folder",
        "images": 20,
        "views": 0,
        "per_class": [2] * 10,
        "short": {},
    }
    assert len(load_images(tmp_path / "f", "train")) == 20
    run("collect", "shaders", "--images=20", f"--out={tmp_path / 'c'}")
    assert (
        "50 images, 5 to 5"
        in run("export", made, tmp_path / "c", f"--out={tmp_path / 'm'}", "--form=set").stdout
    )
    assert (
        last_json(run("verify", f"--set={tmp_path / 'm'}", "--teacher=mnist", "--json"))[
            "labels_differ"
        ]
        == 0
    )
    run("report", f"--run={tmp_path / 'm'}")
    assert (
        "50 images from a generator, shaders, chosen by"
        in (tmp_path / "m" / "report.html").read_text()
    )
    assert "is there already" in refused("export", made, f"--out={tmp_path / 'm'}")
    assert "is not a finished transfer set" in refused(
        "export", tmp_path / "f", f"--out={tmp_path / 'n'}"
    )
    assert "a set is named twice" in refused("export", made, made, f"--out={tmp_path / 'n'}")


def test_distilling_from_any_images_by_several_losses(run, refused, tmp_path):
    from PIL import Image

    for number in range(12):
        pixels = torch.randint(256, (30 + number, 40, 3), dtype=torch.uint8)
        folder = (
            tmp_path / "2023" / "may" if number % 2 else tmp_path
        )  # unlabelled pictures may lie as they like
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    distill = [
        "distill",
        f"--set={tmp_path}",
        f"--out={tmp_path / 'out'}",
        "--student=convnet-4",
        *SHORT,
    ]
    done = run(*distill, "--loss", "hinton=1", "at", "--json")
    assert "1 hinton + 1000 at" in done.stdout and last_json(done)["steps"] == 20
    run(*distill, "--loss=sp=10", "--seed=1", "--overwrite")
    assert "no loss 'hintn'" in refused(*distill, "--loss", "hintn", status=2)
    assert "named twice" in refused(*distill, "--loss", "at=1", "at=2", status=2)
    assert "loss at: 'x' is not a number" in refused(*distill, "--loss", "at=x", status=2)
    assert "add --distillation.labels data" in refused(*distill, "--corrupt=noise=0.4")
    assert "has no labels" in refused(*distill, "--corrupt=noise=0.4", "--distillation.labels=data")


def test_labels_are_damaged_on_request_and_the_rate_told(run, few, tmp_path):
    flags = [
        f"--set={few}",
        f"--out={tmp_path}",
        "--student=convnet-4",
        *SHORT,
        "--distillation.labels=data",
    ]
    assert (
        "of the labels drawn anew"
        in run("distill", *flags, "--corrupt=noise=0.4", "--loss", "labels").stdout
    )


def test_evaluate_measures_nearness_to_the_teacher(run):
    judged = last_json(run("evaluate", "--against=mnist", "--attacks=4", "--json"))
    assert (
        judged["agreement"] == 1
        and judged["magnitude_similarity"] > 0.999
        and judged["angle_similarity"] > 0.999
    )
    assert (
        judged["transfer"] == judged["transfer_teacher"]
        and judged["ece"] < 0.01
        and judged["top5"] > 0.999
    )
    assert judged["images"] == 2000


def test_digits_are_no_test_of_a_colour_network(refused):
    assert "MNIST's, not for wrn-40-2; give its test data with --data" in refused(
        "evaluate", "--model=cifar10"
    )


def test_verify_fails_on_a_damaged_set(demo, refused, tmp_path):
    for path in (demo[1] / "set").glob("[!.]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-00000-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    assert "has changed since it was made" in refused("verify", f"--set={tmp_path}")


def test_a_set_goes_with_its_teacher_and_a_student_that_takes_its_images(demo, refused, tmp_path):
    distill = ["distill", f"--set={demo[1] / 'set'}", f"--out={tmp_path}"]
    model = build_classifier(ModelSpec("convnet-32", mean=(0.1307,), std=(0.3081,)))
    save_classifier(model, tmp_path / "other.safetensors")
    assert "was made by teacher" in refused(*distill, f"--teacher={tmp_path / 'other.safetensors'}")
    teacher = load_teacher()
    save_classifier(
        Classifier(teacher.network, replace(teacher.spec, mean=(0.5,))), tmp_path / "t.safetensors"
    )
    assert "another mean of the teacher" in refused(
        *distill, f"--teacher={tmp_path / 't.safetensors'}"
    )
    assert "resnet18 does not take images of shape (1, 28, 28)" in refused(
        *distill, "--student=resnet18"
    )


def test_inspect_takes_any_model_with_weights(run, refused, tmp_path):
    model = build_classifier(ModelSpec("wrn-10-1", channels=3, size=32, classes=4))
    for name, buffer in model.network.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.network.state_dict().items()}},
        tmp_path / "w.pt",
    )
    flags = [f"--teacher.weights={tmp_path / 'w.pt'}", "--teacher.classes=4"]
    done = run("inspect", "--teacher=wrn-10-1", *flags, "--json")
    assert last_json(done)["spec"]["classes"] == 4
    assert "assuming the network takes images in [0, 1]" in done.stdout.rpartition("\n{")[0]
    imported = [
        "--teacher=distill.models.zoo.wrn.WideResNet",
        '--teacher.arguments={"depth": 10}',
        *flags,
    ]
    assert "BatchNorm2d" in run("inspect", *imported).stdout
    assert "missing: " in refused("inspect", "--teacher=wrn-16-1", *flags)


def test_any_network_can_be_judged_on_images_of_any_shape(run, refused, tmp_path):
    model = build_classifier(
        ModelSpec(
            "distill.models.zoo.wrn.WideResNet", {"depth": 10}, channels=3, size=32, classes=4
        )
    )
    saved = tmp_path / "student.safetensors"
    save_classifier(model, saved)
    np.savez(tmp_path / "grey.npz", images=np.zeros((6, 20, 20), np.uint8), labels=np.arange(6) % 4)
    data = f"--data={tmp_path / 'grey.npz'}"
    both = []
    for which in ("--model", "--against"):
        both += [f"{which}={model.spec.model}", f"{which}.weights={saved}"]
        both += [f"{which}.classes=4", f'{which}.arguments={{"depth": 10}}']
    document = last_json(run("evaluate", *both, data, "--json"))
    assert document["images"] == 6 and document["agreement"] == 1
    assert "names a network that was never trained" in refused("evaluate", "--model=wrn-10-1", data)
    assert "WideResNet as the model" in refused("evaluate", f"--model={saved}", data)
    imported = ["--teacher=distill.models.zoo.wrn.WideResNet", '--teacher.arguments={"depth": 10}']
    assert "statistics were never trained" in refused("inspect", *imported)


def test_a_student_goes_on_from_weights(run, refused, demo, tmp_path):
    flags = [
        f"--set={demo[1] / 'set'}",
        *SHORT,
        "--distillation.optimiser=sgd",
        "--distillation.learning_rate=0",
        "--json",
    ]
    weights = f"--student.weights={demo[1] / STUDENT}"
    run("distill", *flags, f"--out={tmp_path / 'a'}", weights)
    before = load_classifier(demo[1] / STUDENT)
    after = load_classifier(tmp_path / "a" / STUDENT)
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new)
    again = ["distill", *flags, f"--out={tmp_path / 'b'}"]
    assert "no weights file at" in refused(*again, "--student.weights=none.safetensors")
    assert STUDENT in refused(*again, weights, "--student=convnet-8")
    save_classifier(
        Classifier(before.network, replace(before.spec, mean=(0.5,))),
        tmp_path / "other.safetensors",
    )
    assert "mean (0.5,)" in refused(*again, f"--student.weights={tmp_path / 'other.safetensors'}")


def test_an_unfinished_set_is_called_one(refused, tmp_path):
    (tmp_path / ".job").write_text("0" * 64)
    for command in (
        ["distill", f"--set={tmp_path}"],
        ["score", tmp_path],
        ["collect", "--source", tmp_path, f"--out={tmp_path / 'c'}"],
    ):
        assert "give the command that began it again, to finish it" in refused(*command)


def test_other_teachers_are_not_judged_on_mnist_unasked(refused, demo, tmp_path):
    student = demo[1] / STUDENT
    sets = json.dumps({"a": str(demo[1] / "set")})
    assert "give this one's test data with --data" in refused(
        "study", f"--teacher={student}", f"--sets={sets}", f"--out={tmp_path}"
    )
    assert "name the second with --against" in refused(
        "evaluate", f"--model={student}", "--attacks=3"
    )


def test_json_is_the_last_line_even_with_tables(run):
    lines = run("inspect", "--json").stdout.strip().splitlines()
    assert len(lines) > 5 and json.loads(lines[-1])["parameters"] == 288_170


def test_what_a_file_says_of_itself_is_said_to_be_unchecked(run):
    found, _, said = run("inspect").stdout.partition("its file says")
    assert "warnings" in found and "accuracy" not in found
    assert "(not checked)" in said and "accuracy" in said


def test_a_tasks_own_figures_are_shown_before_the_others(run, few, monkeypatch):
    name = "inversion.cli.verbs.evaluate.evaluate_classifier"
    result = Evaluation(0.5, None, [0.5], 0.1, 0.2, 200, own={"mean_iou": 0.25, "iou": [0.125]})
    monkeypatch.setattr(name, lambda *arguments, **settings: result)
    done = run("evaluate", f"--data={few}", "--json")
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert "mean IoU" in rows[0] and "0.2500" in rows[0]
    assert "IoU 12.50%, accuracy 50.00%" in rows[-1]
    assert last_json(done)["own"] == {"mean_iou": 0.25, "iou": [0.125]}


def test_a_set_is_balanced_if_its_task_says_so(demo, refused, monkeypatch):
    made_set = f"--set={demo[1] / 'set'}"
    task = "distill.tasks.classification.Classification.is_balanced"
    monkeypatch.setattr(task, lambda self, counts: False)
    assert "is not balanced: 3 to 3 images per class" in refused("verify", made_set)
