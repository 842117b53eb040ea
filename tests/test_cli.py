import ast
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_FLAGS, environment, last_json

from distill import (
    Classifier,
    ModelSpec,
    TransferSet,
    build_classifier,
    load_classifier,
    load_images,
    save_classifier,
)
from distill.options import DistillOptions, StudentOptions
from inversion import MNIST_SLICE, load_teacher
from inversion.cli import schema as runs
from inversion.cli.help import describe
from inversion.cli.main import VERBS, main, parse
from inversion.cli.words import name_set
from inversion.options import SynthesisOptions, TeacherViewOptions
from inversion.pages.page import lines, whole
from inversion.pages.report import _synthesis_curves, told_of, weights_given, write_report
from synthesis_kernels.errors import EchosetError

SHORT = ["--distillation.steps=20", "--distillation.views_per_image=2"]
POOL = [
    "--synthesis.replay.keep_all=true",
    "--synthesis.replay.balanced_targets=false",
    "--synthesis.calls=2",
]
"""After TINY_FLAGS, a set of 80 images in two calls: the quickest, where it does not matter."""
STUDENT, SHARD = "student.safetensors", "set/shard-00000-of-00001.safetensors"


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process: most of a command's time would go into the imports of a
    new one.
    """
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, status=0):
        try:
            found = main(list(map(str, arguments)))
        except SystemExit as ended:
            found = ended.code
        said = capsys.readouterr()
        assert found == status, f"status {found}\n{said.out}\n{said.err}"
        return SimpleNamespace(stdout=said.out, stderr=said.err)

    return run


@pytest.fixture
def refused(run):
    """What a command that must fail says."""
    return lambda *arguments, status=1: run(*arguments, status=status).stderr


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """200 digits to judge on, where the accuracy does not matter."""
    data, path = load_images(MNIST_SLICE), tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, images=data.images[::10, 0].numpy(), labels=data.labels[::10].numpy())
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "demo"
    command = [
        sys.executable,
        "-m",
        "inversion.cli.main",
        "demo",
        f"--out={out}",
        "--json",
        *TINY_FLAGS,
        *SHORT,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True
    ), out


def test_demo_prints_its_json_last_and_names_the_report(demo):
    done, out = demo
    document = last_json(done)
    assert {
        "teacher_accuracy",
        "student_accuracy",
        "images",
        "per_class",
        "seconds",
        "report",
    } <= document.keys()
    assert {"synthesis", "distillation", "total"} <= document["seconds"].keys()
    assert document["images"] == 30 and document["per_class"] == [3] * 10
    assert document["teacher_accuracy"] >= 0.993
    assert str(out / "report.html") in done.stdout and (out / "report.html").is_file()
    assert (out / STUDENT).is_file() and (out / "log.jsonl").is_file()


def test_the_report_stands_alone(demo):
    page = (demo[1] / "report.html").read_text()
    assert not re.search(r"(src|href)=.?(https?:|/|\.)|<script", page)
    for part in (
        "data:image/png;base64",
        "<svg",
        "images per class",
        "agreement, by generator call",
        "Where the time went",
        "echoset demo",
    ):
        assert part in page
    assert page.count("<img") == 10


def test_a_process_ends_with_its_status_and_complains_on_standard_error(echoset):
    assert "echoset VERB --help" in echoset("--help").stdout
    misused, failed = echoset("demmo", status=2), echoset("report", "--run=/nowhere", status=1)
    assert "did you mean demo" in misused.stderr and "neither a demo nor" in failed.stderr
    assert not misused.stdout and not failed.stdout


def test_pictures_beside_the_set_teach_too(demo, run, few, tmp_path):
    alone, beside = demo[1], tmp_path / "demo"
    flags = [f"--out={beside}", f"--data={few}", *TINY_FLAGS, *SHORT, "--beside.images=20"]
    done = run("demo", "--json", *flags)
    told = last_json(done)
    assert "30 synthetic images and 20 from shaders" in done.stdout
    assert told["images"] == 30 and told["beside"] == {
        "images": 20,
        "sources": ["shaders"],
        "per_class": [2] * 10,
    }
    assert told["seconds"]["collection"] > 0
    assert torch.equal(
        TransferSet.load(beside / "set").images, TransferSet.load(alone / "set").images
    )
    students = [(out / STUDENT).read_bytes() for out in (alone, beside)]
    assert students[0] != students[1]
    page = (beside / "report.html").read_text()
    assert "20 images of shaders" in page and "no real image" in page and "<td>collection" in page
    # `distill` with the two sets teaches the same student.
    sets = [
        f"--set={beside / 'set'}",
        f"--beside={beside / 'beside'}",
        f"--out={tmp_path / 'student'}",
        "--seed=3",
    ]
    assert "50 images of" in run("distill", *sets, *SHORT).stdout
    assert (tmp_path / "student" / STUDENT).read_bytes() == students[1]
    # Stopped before the student was taught, it goes on to the same bytes.
    collected = [
        (beside / "beside" / name).stat().st_mtime_ns for name in ("manifest.json", ".job")
    ]
    (beside / "summary.json").unlink()
    (beside / STUDENT).unlink()
    run("demo", "--quiet", *flags)
    assert (beside / STUDENT).read_bytes() == students[1]
    assert collected == [
        (beside / "beside" / name).stat().st_mtime_ns for name in ("manifest.json", ".job")
    ]
    # A finished one is made anew, and this time without: the bytes of one that never had any, made
    # by another process.
    made = (beside / SHARD).stat().st_mtime_ns
    run("demo", "--quiet", *flags[:-1])
    assert all(
        (beside / name).read_bytes() == (alone / name).read_bytes() for name in (STUDENT, SHARD)
    )
    assert (beside / SHARD).stat().st_mtime_ns > made and not (beside / "beside").exists()


def test_a_growing_pool_and_real_images_teach_the_student_that_learnt_along(run, few, tmp_path):
    same = [
        "--student=convnet-4",
        "--synthesis.adversary.student.model=convnet-4",
        "--synthesis.adversary.keep=true",
    ]
    beside = ["--beside.images=30", f'--beside.sources=["{few}"]', "--start=adversary"]
    flags = [
        f"--out={tmp_path / 'd'}",
        f"--data={few}",
        *TINY_FLAGS,
        *SHORT,
        *POOL,
        *same,
        *beside,
        "--json",
    ]
    told = last_json(run("demo", *flags))
    assert (
        told["images"] == 80
        and told["beside"]["per_class"] == [3] * 10
        and told["start"] == "adversary"
    )
    page = (tmp_path / "d" / "report.html").read_text()
    assert (
        "30 images of" in page
        and "no real image" not in page
        and "It went on from the adversarial student" in page
    )


def test_what_stands_beside_the_set_is_checked_before_the_work(refused, tmp_path):
    demo = ["demo", f"--out={tmp_path / 'demo'}", *TINY_FLAGS, "--beside.images=20"]
    assert "did you mean shaders?" in refused(*demo, '--beside.sources=["shader"]')
    assert "where this demo writes" in refused(
        *demo, f'--beside.sources=["{tmp_path / "demo" / "set"}"]'
    )
    assert "must be at least 0, got -1" in refused(*demo, "--beside.images=-1")
    adversary = ["--start=adversary", "--synthesis.adversary.keep=true", "--distillation.steps=0"]
    assert "leave beside.images at 0" in refused(*demo, *adversary)
    assert not (tmp_path / "demo").exists()


def test_the_verbs_work_on_each_others_files(demo, run, few, tmp_path):
    made_set, page = f"--set={demo[1] / 'set'}", tmp_path / "r.html"
    verified = last_json(run("verify", made_set, "--teacher=mnist", "--json"))
    assert (
        verified["balanced"]
        and verified["labels_differ"] == 0
        and verified["largest_logit_gap"] < 2e-3
    )
    student = last_json(
        run("distill", made_set, f"--out={tmp_path}", "--student=lenet5", *SHORT, "--json")
    )["student"]
    judged = last_json(
        run(
            "evaluate",
            f"--model={student}",
            "--against=mnist",
            f"--data={few}",
            "--attacks=2",
            "--json",
        )
    )
    assert judged["images"] == 200 and 0 <= judged["agreement"] <= 1
    assert last_json(run("report", f"--run={demo[1] / 'set'}", f"--out={page}", "--json"))[
        "report"
    ] == str(page)
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
    run(*distill, "--loss=sp=10", "--seed=1")
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


def test_the_teachers_views_by_flag_and_by_file(tmp_path):
    given = ["--synthesis.objective.views", '{"shift": 0.125, "flip": true}']
    (tmp_path / "c.yaml").write_text("synthesis: {objective: {views: {shift: 0.125, flip: true}}}")
    for flags in (given, [f"--config={tmp_path / 'c.yaml'}"]):
        assert parse("synthesize", flags).synthesis.objective.views == TeacherViewOptions(
            shift=0.125, flip=True
        )
    assert parse(
        "synthesize", ["--synthesis.objective.views.shift=0"]
    ).synthesis.objective.views == TeacherViewOptions(shift=0)
    assert parse("synthesize", []).synthesis.objective.views is None


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
    data, told = f"--data={tmp_path / 'grey.npz'}", ["", ".weights", ".classes", ".arguments"]
    values = [model.spec.model, saved, 4, '{"depth": 10}']
    both = [
        f"--{which}{name}={value}"
        for which in ("model", "against")
        for name, value in zip(told, values, strict=True)
    ]
    document = last_json(run("evaluate", *both, data, "--json"))
    assert document["images"] == 6 and document["agreement"] == 1
    assert "names a network that was never trained" in refused("evaluate", "--model=wrn-10-1", data)
    assert "import path as the model" in refused("evaluate", f"--model={saved}", data)
    imported = ["--teacher=distill.models.zoo.wrn.WideResNet", '--teacher.arguments={"depth": 10}']
    assert "statistics were never trained" in refused("inspect", *imported)


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["synthesize", "--imags=3"], 2, "--imags"),
        (["synthesize", "--images=many"], 2, "many"),
        (["synthesize", "--teacher.modle=x"], 2, "--teacher.modle"),
        (["demo", "--device=tpu"], 2, "tpu"),
        (["distill", "--set=/nowhere"], 1, "no data at /nowhere"),
        (["evaluate", "--data=/nowhere"], 1, "no data at /nowhere"),
        (["evaluate", "--model=/nowhere.safetensors"], 1, "no model file at /nowhere.safetensors"),
        (["inspect", "--teacher=resnt18"], 1, "Did you mean resnet18"),
    ],
)
def test_mistakes_get_a_status_and_a_message(refused, arguments, status, message):
    assert message in refused(*arguments, status=status)


def test_yaml_with_an_unknown_key_is_refused_by_name(refused, tmp_path):
    (tmp_path / "c.yaml").write_text("synthesis:\n  imagse: 3\n")
    assert "imagse" in refused("synthesize", f"--config={tmp_path / 'c.yaml'}", status=2)


@pytest.mark.parametrize("verb", VERBS)
def test_printed_configs_read_back_and_flags_win(run, tmp_path, verb):
    (tmp_path / "c.yaml").write_text(run(verb, "--seed=5", "--print_config").stdout)
    read, given = (
        parse(verb, flags) for flags in ([f"--config={tmp_path / 'c.yaml'}"], ["--seed=5"])
    )
    assert read == given and read.seed == 5
    assert parse(verb, [f"--config={tmp_path / 'c.yaml'}", "--seed=6"]) == replace(given, seed=6)


def test_every_config_in_the_repository_is_accepted(run):
    teachers = ROOT / "configs" / "teachers"  # these are read by tools/train_teacher.py
    configs = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent != teachers)
    assert configs
    for path in configs:
        verb = re.search(r"echoset (\w+) --config", path.read_text())
        assert verb, f"{path} does not say in a comment how it is run"
        run(verb[1], f"--config={path}", "--print_config")


HELP = """
import contextlib, io, json, sys
from inversion.cli.main import main
texts = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main(arguments)
    assert said.getvalue() and "torch" not in sys.modules, arguments
    texts.append(said.getvalue())
print(json.dumps(texts))
"""


def test_help_names_every_option_and_never_imports_torch():
    asked = [
        ["--help"],
        [],
        ["--version"],
        ["demo", "--print_config"],
        *([verb, "--help"] for verb in VERBS),
        *([verb, "--help", "all"] for verb in VERBS),
    ]
    command = [sys.executable, "-c", HELP, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for verb, text in zip(VERBS, json.loads(done.stdout)[-len(VERBS) :], strict=True):
        assert all(
            f"--{name}" in text
            for name in getattr(runs, f"{verb.capitalize()}Run").__dataclass_fields__
        )


@pytest.mark.parametrize(
    "path", ["distill/options.py", "inversion/options.py", "inversion/cli/schema.py"]
)
def test_every_option_is_explained(path):
    for schema in (
        node
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ClassDef)
    ):
        for field, following in pairwise([*schema.body, None]):
            if isinstance(field, ast.AnnAssign):
                explained = isinstance(following, ast.Expr) and isinstance(
                    following.value, ast.Constant
                )
                assert explained, f"{path}: {schema.name}.{field.target.id} has no docstring"


def test_of_a_file_and_flags_what_comes_later_wins(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 1\n")
    config = f"--config={tmp_path / 'c.yaml'}"
    assert parse("demo", [config, "--seed=7"]).seed == 7
    assert parse("demo", ["--seed=7", config]).seed == 1


def test_the_short_help_names_its_options_and_is_short():
    for verb in VERBS:
        text = describe(verb)
        assert text.count("\n  --") <= 10, verb
        assert max(map(len, text.splitlines())) <= 100, verb
    assert "--teacher " in describe("demo") and "--images" in describe("demo")


def test_sources_are_named_in_words_or_by_an_option(refused):
    assert "in words or by an option" in refused("collect", "--source=noise", "pink", status=2)


def test_a_value_out_of_range_is_a_misuse(refused):
    assert "rank must lie in" in refused("synthesize", "--rank=5", status=2)


def test_the_preset_of_the_demo_is_its_defaults():
    assert parse("demo", ["--config", str(ROOT / "configs" / "mnist.yaml")]) == parse("demo", [])


def test_a_demo_whose_student_starts_from_the_adversarial_one(run, refused, few, tmp_path):
    demo = ["demo", f"--out={tmp_path / 'demo'}", f"--data={few}", *TINY_FLAGS]
    assert "--start adversary" in refused(*demo, "--distillation.steps=0")
    assert "adversary.keep" in refused(*demo, "--start=adversary")
    start = ["--start=adversary", "--synthesis.adversary.keep=true", "--json"]
    assert "be the same" in refused(*demo, *start, "--student=convnet-8")
    assert "shard_images to 30" in refused(*demo, *start, "--synthesis.shard_images=10")

    def networks():
        return [
            load_classifier(tmp_path / "demo" / name)
            for name in (STUDENT, "set/adversary-00000.safetensors")
        ]

    found = last_json(run(*demo, *start, *POOL, "--distillation.steps=0"))
    assert (
        found["student_accuracy"] == found["adversary_accuracy"]
        and found["seconds"]["distillation"] == 0
    )
    student, adversary = networks()
    assert student.weight_hash() == adversary.weight_hash() and found["start"] == "adversary"
    assert (
        "It went on from the adversarial student" in (tmp_path / "demo" / "report.html").read_text()
    )
    inside = refused(*demo, *start, f"--student.weights={tmp_path / 'demo' / STUDENT}")
    assert "where this demo writes and clears away" in inside
    (tmp_path / "demo" / STUDENT).rename(tmp_path / "kept.safetensors")
    assert "two starts" in refused(
        *demo, *start, f"--student.weights={tmp_path / 'kept.safetensors'}"
    )
    # Steps of size 0 leave the adversary's parameters; the statistics of its BatchNorm follow the
    # images.
    run(
        *demo,
        *start,
        *POOL,
        *SHORT,
        "--distillation.optimiser=sgd",
        "--distillation.learning_rate=0",
    )
    for student, adversary in zip(*(network.parameters() for network in networks()), strict=True):
        assert torch.equal(student, adversary)


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
    before, after = (load_classifier(folder / STUDENT) for folder in (demo[1], tmp_path / "a"))
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


def test_a_demo_stopped_before_its_report_is_no_finished_one(demo, run, few, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    (out / "report.html").unlink()
    made = {name: (out / name).stat().st_mtime_ns for name in ("set/manifest.json", SHARD)}
    run("demo", f"--out={out}", f"--data={few}", "--quiet", *TINY_FLAGS, *SHORT)
    assert (out / "report.html").is_file() and made == {
        name: (out / name).stat().st_mtime_ns for name in made
    }
    assert not [path for path in out.iterdir() if path.suffix == ".state"]


def test_a_page_does_not_vouch_for_weights_it_has_not_seen_made(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    assert "saw no real image" in write_report(out).read_text()
    told = json.loads((out / "summary.json").read_text())
    for unsure in (
        told | {"given_weights": ["mine.safetensors"]},
        {k: v for k, v in told.items() if k != "given_weights"},
    ):
        (out / "summary.json").write_text(json.dumps(unsure))
        assert "saw no real image" not in write_report(out).read_text()
    students = (
        StudentOptions("convnet-4"),
        StudentOptions("lenet5", weights="w.pth"),
        StudentOptions("mine.nets:Pretrained"),
    )
    assert weights_given(*students[:1]) == [] and weights_given(*students) == [
        "mine.nets:Pretrained",
        "w.pth",
    ]


def test_a_page_says_what_was_kept_and_whose_answers_taught(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    told = json.loads((out / "summary.json").read_text())
    assert (told["kept"], told["answers"]) == ("last step", "teacher")
    with open(out / "log.jsonl", "a") as log:  # so that there is a curve
        log.writelines(
            json.dumps({"event": "distill", "step": step, "agreement": 0.5, "loss": 1}) + "\n"
            for step in (50, 100)
        )
    for options, kept, answers in (
        (DistillOptions(), "last step", "teacher"),
        (DistillOptions(patience=3, ema=0.9), "best on held-out images of the set", "teacher"),
        (
            DistillOptions(ema=0.9, labels="data"),
            "running average of the student's weights",
            "teacher",
        ),
        (DistillOptions(loss={"dml": None}, labels="data"), "last step", "labels"),
        (DistillOptions(loss={"at": None}, labels="data"), "last step", "teacher"),
    ):
        (out / "summary.json").write_text(json.dumps(told | told_of(options)))
        page = write_report(out).read_text()
        assert (
            f"the {html.escape(kept)} is what is reported" in page
            and f"divergence from the {answers}, by step" in page
        )
    del told["kept"], told["answers"]  # as before these were told
    (out / "summary.json").write_text(json.dumps(told))
    page = write_report(out).read_text()
    assert (
        "the last step is what is reported" in page
        and "divergence from the teacher, by step" in page
    )


CALL = {
    "event": "call",
    "shard": 0,
    "call": 9,
    "seconds": 1.0,
    "generator_seconds": 0.5,
    "taken": 3,
    "counts": [1] * 10,
}
CALL |= {"held_out_agreement": 0.5, "agreement": 0.5, "bn": 1.0, "classes": 1.0}
"""A line of a synthesis' log."""


def test_a_page_names_the_file_it_cannot_show(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    told, made = (
        json.loads((out / name).read_text()) for name in ("summary.json", "set/manifest.json")
    )

    def without(document, key):
        return {k: v for k, v in document.items() if k != key}

    calls = [without(CALL, key) for key in ("shard", "seconds", "held_out_agreement")]
    calls += [CALL | bad for bad in ({"call": []}, {"seconds": "1"}, {"bn": "much"}, {"counts": 7})]
    summaries = [
        [],
        without(told, "agreement"),
        told | {"agreement": None},
        told | {"seconds": {"evaluation": "1"}},
    ]
    sets = [made | {"collection": found} for found in ([1], {"sources": ["noise"], "taken": {}})]
    for name, contents in {
        "set/log.jsonl": calls,
        "summary.json": summaries,
        "set/manifest.json": sets,
    }.items():
        before = (out / name).read_bytes()
        for content in contents:
            (out / name).write_bytes(
                (before if content in calls else b"") + json.dumps(content).encode() + b"\n"
            )
            with pytest.raises(EchosetError, match=re.escape(str(out / name))):
                write_report(out)
        (out / name).write_bytes(before)
    (out / "summary.json").write_bytes(b"\xff")
    with pytest.raises(EchosetError, match=r"summary\.json is not as echoset writes it: "):
        write_report(out)


def test_figures_that_are_no_numbers_are_left_out_of_the_curves(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    calls = [
        CALL | {"call": call, "bn": bn}
        for call, bn in enumerate((float("nan"), 2.0, float("inf"), 1.0))
    ]
    (out / "set" / "log.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    page = write_report(out).read_text()
    assert 'points="156.7,25.0 390.0,97.5"' in page and "<h2>Synthesis</h2>" in page
    assert 'points=""' in lines([1, 2], {"nothing": [float("nan")] * 2}, "title")
    assert "<h2>Synthesis, shard 0 of 2</h2>" in _synthesis_curves(calls, 2)


def test_the_ends_of_an_axis_are_told_as_finely_as_it_is_drawn():
    for limits, ends in {
        (0.9765, 1.0): ("1", "0.9765"),
        (0.995, 1.0): ("1", "0.995"),
        (0, 3000): ("3,000", "0"),
        (0.0, 999.7): ("1,000", "0"),
        (-0.25, 3.456): ("3.46", "-0.25"),
        (1.0, 1.0): ("1", "1"),
    }.items():
        chart = lines([1, 2], {"it": [limits[0]] * 2}, "title", limits)
        assert tuple(re.findall(r"text-anchor=end>([^<]*)</text>", chart)[:2]) == ends


def test_a_page_is_written_where_a_path_is_not_utf_8():
    assert b"runs/?" in whole("Echoset", "runs/\udcff")


def test_a_teacher_is_not_written_over(demo, refused):
    student = demo[1] / STUDENT
    before = student.read_bytes()
    inside = refused(
        "demo", f"--out={demo[1]}", f"--teacher={student}", f"--data={MNIST_SLICE}", *TINY_FLAGS
    )
    assert "where this demo writes and clears away" in inside
    over = refused(
        "distill", f"--set={MNIST_SLICE}", f"--teacher={student}", f"--out={demo[1]}", *SHORT
    )
    assert "written over its teacher" in over and student.read_bytes() == before


def test_out_of_memory_is_said(monkeypatch, refused):
    monkeypatch.setattr("inversion.cli.verbs.inspect.execute", lambda run: torch.empty(1 << 58))
    assert "out of memory; lower the batch" in refused("inspect")
    monkeypatch.setattr(
        "inversion.cli.verbs.inspect.execute", lambda run: torch.zeros(2) @ torch.zeros(3)
    )
    with pytest.raises(RuntimeError):
        main(["inspect"])


def test_short_names_stand_for_what_the_verb_has():
    assert parse("synthesize", ["--patience", "7", "--images", "50"]).synthesis == SynthesisOptions(
        patience=7, images=50
    )
    assert parse("demo", ["--patience", "7"]).distillation.patience == 7
    assert parse("study", ["--sets={}", "--images", "500"]).study.images == 500
    assert parse("collect", ["--images=70"]).collection.images == 70
    assert parse("bench", ["--against", "mine.json"]).against == "mine.json"
    assert parse("evaluate", ["--against", "mine.safetensors"]).against.model == "mine.safetensors"
    for none in (["--against=null"], ["--against", "null"]):
        assert parse("evaluate", none).against is None


def test_sets_are_called_by_the_whole_of_their_names():
    names = {
        "runs/set-0.5": "set-0.5",
        "leaves.npz": "leaves",
        "runs/demo/set": "demo-set",
        "a.b/set": "a.b-set",
    }
    assert {path: name_set(path, {}) for path in names} == names


MISUSED = ("--distillation.batch=1", "--loss=hintn")
"""Told by the options themselves, before any work."""


def test_a_failed_demo_keeps_the_finished_one(demo, refused):
    out, untrained = (
        demo[1],
        ["--teacher=distill.models.zoo.lenet.LeNet5"],
    )  # by import path, it may bring its own weights
    for flags, message in (
        (["--distillation.batch=1"], "batch"),
        (["--loss=hintn"], "no loss 'hintn'"),
        (["--step=compiled", "--loss=at"], "can't be had with the losses"),
        (
            ["--synthesis.replay.sampling=policy", "--synthesis.held_out=0"],
            "learns from held-out images",
        ),
        (["--data=/nowhere"], "no data at /nowhere"),
        (["--synthesis.calls=0"], "calls must be at least 1"),
        (
            ["--synthesis.calls=2", "--images=2000"],
            "make 160 images, and 2,000 are wanted; raise calls to at least 50",
        ),
        (
            ["--synthesis.generator.meta_rate=-1"],
            "generator.meta_rate must be a number of at least 0, got -1",
        ),
        (
            ["--synthesis.generator.learning_rate=.nan"],
            "generator.learning_rate must be a number of at least 0, got nan",
        ),
        (["--synthesis.adversary.learning_rate=-1"], "adversary.learning_rate must be a number"),
        (
            [*untrained, "--teacher.size=28", "--teacher.channels=1", f"--data={MNIST_SLICE}"],
            "statistics were never trained",
        ),
    ):
        status = 2 if "must be" in message or flags[0] in MISUSED else 1
        assert message in refused("demo", f"--out={out}", *TINY_FLAGS, *flags, status=status)
    assert (out / "report.html").is_file() and (out / "set" / "manifest.json").is_file()


def test_a_demo_keeps_the_state_of_another_work(refused, tmp_path):
    (tmp_path / "student.state").write_bytes(b"hours")
    assert "holds a stopped distillation" in refused("demo", f"--out={tmp_path}", *TINY_FLAGS)
    assert (tmp_path / "student.state").read_bytes() == b"hours"


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
