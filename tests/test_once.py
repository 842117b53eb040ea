"""A teacher that is said once: by a file of options, and by the set that it made."""

import json
import os
import shutil

import pytest
import torch
from conftest import STUDENT, TINY_FLAGS, last_json

from distill import Classifier, ModelSpec, build_classifier, save_classifier
from distill.files import unseal
from inversion.teacher import BUNDLED

SHORT = ["--student=convnet-4", "--distillation.steps=2", "--distillation.views_per_image=2"]
CODE = "distill.models.zoo.convnet.ConvNet"
NAMED = ["--teacher.channels=1", "--teacher.size=16", "--teacher.classes=4"]


@pytest.fixture
def weights(tmp_path):
    """A network's weights alone, in a file."""
    network = build_classifier(ModelSpec("convnet-4", channels=1, size=16, classes=4)).network
    torch.save(network.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def collect(run, folder, *flags):
    run(
        "collect",
        "noise",
        f"--out={folder}",
        "--images=12",
        "--collection.balanced=false",
        "--answers=0",
        *flags,
    )
    return folder


def distil(run, folder, out, *flags, **status):
    return run("distill", f"--set={folder}", f"--out={out}", *SHORT, *flags, **status)


def test_a_set_knows_the_file_of_its_teacher_wherever_both_are(
    run, refused, weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    collect(run, "set", "--teacher=convnet-4", "--teacher.weights=net.pth", *NAMED)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "set", "copy")
    distil(run, "copy", "out")
    assert last_json(run("verify", "--set=copy", "--teacher=copy", "--json"))["labels_differ"] == 0
    run("score", "copy", "--out=page.html")
    compared = run("evaluate", f"--model=out/{STUDENT}", "--against=copy", status=1).stderr
    assert "give its test data" in compared

    other = build_classifier(ModelSpec("convnet-4", channels=1, size=16, classes=4), seed=1)
    torch.save(other.network.state_dict(), weights)
    assert "it has changed since" in refused("score", "copy", "--out=page.html")
    os.remove(weights)
    gone = refused("distill", "--set=copy", "--out=other")
    assert str(weights) in gone and "--teacher" in gone


def test_a_bundled_teacher_is_known_without_a_note(run, refused, tmp_path):
    folder = collect(run, tmp_path / "set", "--teacher=mnist")
    (folder / "teacher.yaml").unlink()
    distil(run, folder, tmp_path / "out")
    manifest = unseal(json.loads((folder / "manifest.json").read_text()))
    manifest["teacher"]["model"] = "mine"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "doesn't say where its teacher is ('mine')" in refused("distill", f"--set={folder}")


def test_a_set_does_not_run_the_code_it_names_unless_trusted(run, weights, tmp_path):
    flags = [f"--teacher={CODE}", f"--teacher.weights={weights}", *NAMED]
    folder = collect(run, tmp_path / "set", *flags, '--teacher.arguments={"width": 4}')
    said = distil(run, folder, tmp_path / "out", status=1).stderr
    assert CODE in said and "--trust" in said
    distil(run, folder, tmp_path / "out", "--trust")


def test_a_file_of_options_does_not_run_the_code_it_names_unless_trusted(run, refused, tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    file = tmp_path / "teacher.yaml"
    for model in ("mine:net", str(tmp_path / "net.pt2")):
        file.write_text(f"model: {model}\n")
        said = refused("inspect", f"--teacher={file}")
        assert f"'{model}'" in said and "--trust" in said
    arguments = "{width: 4}\nchannels: 1\nsize: 16\nclasses: 4"
    file.write_text(f"model: {CODE}\narguments: {arguments}\n")
    folder = collect(run, tmp_path / "set", f"--teacher={file}", "--trust")
    for place in (folder, folder / "teacher.yaml"):
        flags = [f"--set={folder}", f"--teacher={place}"]
        assert CODE in refused("verify", *flags)
        run("verify", *flags, "--trust")


def test_a_student_by_import_path_is_judged_where_it_is_trusted(run, few, tmp_path):
    spec = ModelSpec(CODE, {"width": 4})
    save_classifier(build_classifier(spec), tmp_path / STUDENT)
    judge = ["evaluate", f"--model={tmp_path / STUDENT}", f"--data={few}", "--json"]
    assert "--trust" in run(*judge, status=1).stderr
    assert last_json(run(*judge, "--trust"))["images"] == 200


def test_a_teacher_is_named_by_a_file_of_its_options(run, refused, weights, tmp_path):
    file = tmp_path / "teacher.yaml"
    file.write_text("model: convnet-4\nweights: net.pth\nchannels: 1\nsize: 16\nclasses: 4\n")
    distil(run, collect(run, tmp_path / "set", f"--teacher={file}"), tmp_path / "out")
    wide = refused("distill", f"--set={tmp_path / 'set'}", f"--teacher={file}", "--teacher.size=24")
    assert "another size of the teacher" in wide

    for text, message in (
        ("modle: convnet-4", "a teacher has no option 'modle'; it has model, weights"),
        ("model: convnet-4\nsize: large", "size"),
        ("size", "must hold a teacher's options"),
        ("{", "is not readable YAML"),
    ):
        file.write_text(text)
        said = refused("inspect", f"--teacher={file}")
        assert message in said and str(file) in said
    assert "no file of a teacher's options" in refused("inspect", "--teacher=/nowhere/t.yaml")


def test_a_network_without_a_name_leaves_no_note(tmp_path):
    from inversion import CollectOptions, collect

    network = build_classifier(ModelSpec("convnet-4", channels=1, size=16, classes=4)).network
    teacher = Classifier(network, ModelSpec("mine", channels=1, size=16, classes=4)).eval()
    collect(teacher, ("noise",), CollectOptions(images=8, balanced=False), tmp_path / "set")
    assert not (tmp_path / "set" / "teacher.yaml").exists()


@pytest.mark.slow
def test_a_demo_without_test_data_compares_the_two_networks(run, tmp_path):
    shutil.copy(BUNDLED["mnist"], tmp_path / "t.safetensors")
    flags = [f"--teacher={tmp_path / 't.safetensors'}", f"--out={tmp_path / 'demo'}"]
    done = run("demo", *flags, *TINY_FLAGS, "--distillation.steps=20", "--student=convnet-4")
    said = " ".join(done.stdout.split())
    assert "1,024 procedural pictures held out; for accuracies give" in said
    assert "accuracy" not in done.stdout.partition("parameters")[0]
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["teacher_accuracy"] is None and summary["student_accuracy"] is None
    assert 0 <= summary["agreement"] <= 1
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "The student decides as the teacher does on" in page and "no labelled test" in page
