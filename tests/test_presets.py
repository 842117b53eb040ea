"""Options that go together, and which of them a teacher gets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from distill import DistillOptions, ModelSpec, build_classifier, save_classifier
from inversion import SynthesisOptions, find_preset
from inversion.cli.main import parse
from inversion.cli.preset import follow_teacher
from inversion.presets import read_preset
from synthesis_kernels.errors import EchosetError

CONFIGS = Path(__file__).parent.parent / "configs"
VERBS = ("demo", "synthesize", "distill")


@pytest.mark.parametrize("verb", VERBS)
def test_digits_are_the_defaults(verb):
    digits = parse(verb, ["--preset=digits"])
    assert replace(digits, preset=None) == parse(verb, [])
    assert replace(parse(verb, ["--preset", "none"]), preset=None) == parse(verb, [])


def test_a_preset_serves_each_verb_and_what_is_given_wins(tmp_path):
    demo = parse("demo", ["--synthesis.calls=9", "--preset=photos", "--loss", "at"])
    assert (demo.synthesis.calls, demo.synthesis.views.flip, demo.beside.images) == (9, True, 1000)
    assert demo.distillation.loss == {"at": None} and demo.distillation.views.flip
    assert parse("synthesize", ["--preset=photos"]).synthesis.views == demo.synthesis.views
    assert parse("distill", ["--preset=photos"]).distillation.loss == {"hinton": 1, "hints": 20}
    assert parse("synthesize", ["--preset=fast"]).synthesis.recipe == "fast-datafree"

    (tmp_path / "c.yaml").write_text("preset: photos\nsynthesis: {calls: 11}\n")
    read = parse("synthesize", [f"--config={tmp_path / 'c.yaml'}"]).synthesis
    assert read.calls == 11 and read.views.flip


def test_an_unknown_preset_names_those_there_are(run):
    said = run("demo", "--preset=phtos", status=2).stderr
    assert (
        "preset must be one of digits, photos, large, maps, dfad, fast, none or null, got phtos"
        in said
    )


def kept(tmp_path, name, **more):
    spec = ModelSpec("convnet-4", **{"size": 16, "classes": 4} | more)
    save_classifier(build_classifier(spec), tmp_path / name)
    return f"--teacher={tmp_path / name}"


@pytest.mark.parametrize(
    "more, preset, reason",
    [
        ({"channels": 1}, "digits", "takes grey images"),
        ({"channels": 3}, "photos", "takes colour images"),
        ({"channels": 3, "notes": {"views": {"shift": 0.1}}}, "digits", "were not mirrored"),
        ({"channels": 1, "notes": {"views": {"flip": True}}}, "photos", "were mirrored"),
        ({"channels": 3, "size": 96}, "large", "images of 96 pixels along a side"),
    ],
)
def test_a_teacher_gets_its_preset_and_a_line_says_so(more, preset, reason, run, tmp_path):
    teacher = kept(tmp_path, "t.safetensors", **more)
    out = f"--out={tmp_path / 'set'}"
    said = run("synthesize", teacher, out, status=1).stderr  # it was never trained
    assert f"preset {preset}: " in said and reason in said
    for flags in (["--preset=none"], ["--quiet"]):
        assert "preset" not in run("synthesize", teacher, out, *flags, status=1).stderr
    (tmp_path / "c.yaml").write_text("seed: 1\n")
    beside = f"--config={tmp_path / 'c.yaml'}"
    assert "preset" not in run("synthesize", teacher, out, beside, status=1).stderr


def test_published_weights_tell_how_large_their_images_are():
    arguments = ["--teacher=resnet18", "--teacher.weights=DEFAULT", "--images=2000", "--quiet"]
    options = parse("demo", arguments)
    followed = follow_teacher("demo", options, arguments)
    assert followed == replace(parse("demo", [*arguments, "--preset=large"]), preset=None)
    assert followed.synthesis.batch < options.synthesis.batch and followed.synthesis.images == 2000
    assert followed.student.model == followed.synthesis.adversary.student.model == "resnet18"


@pytest.mark.parametrize("size", [16, 96])
def test_a_network_of_maps_gets_students_that_answer_with_maps(size, tmp_path, capsys):
    spec = ModelSpec("unet-1", size=size, classes=3, task="segmentation")
    save_classifier(build_classifier(spec), tmp_path / "t.safetensors")
    arguments = [f"--teacher={tmp_path / 't.safetensors'}", "--images=30"]
    options = follow_teacher("demo", parse("demo", arguments), arguments)
    assert "preset maps: the teacher answers with a class for each pixel" in capsys.readouterr().err
    assert options == replace(parse("demo", [*arguments, "--preset=maps"]), preset=None)
    assert options.student.model == options.synthesis.adversary.student.model == "unet-8"
    assert options.synthesis.images == 30 and options.synthesis.objective.adversary_log

    plain = [*arguments, "--synthesis.recipe=fast-datafree"]
    options = follow_teacher("demo", parse("demo", plain), plain)
    assert options.student.model == options.synthesis.adversary.student.model == "unet-8"
    assert not options.synthesis.objective.adversary_log


def test_the_baseline_of_label_maps_is_one_flag(tmp_path, capsys):
    spec = ModelSpec("unet-1", size=16, classes=3, task="segmentation")
    save_classifier(build_classifier(spec), tmp_path / "t.safetensors")
    arguments = [f"--teacher={tmp_path / 't.safetensors'}"]
    named = parse("demo", [*arguments, "--preset=dfad"])
    arguments.append("--synthesis.recipe=adversarial")
    assert follow_teacher("demo", parse("demo", arguments), arguments) == replace(
        named, preset=None
    )
    assert "preset dfad: recipe adversarial was chosen" in capsys.readouterr().err
    differ = {
        "synthesis.recipe": "adversarial",
        "synthesis.generator.learning_rate": 1.0e-3,
        "synthesis.objective.classes": 0,
        "synthesis.objective.adversary": 1,
        "synthesis.adversary.begins": 0,
        "synthesis.adversary.steps": 5,
    }
    assert read_preset("dfad") == read_preset("maps") | differ


def test_the_preset_of_maps_is_the_published_run():
    published = read_preset("maps")
    config = yaml.safe_load((CONFIGS / "camvid.yaml").read_text())
    for group in ("generator", "objective", "adversary", "views"):
        for name, value in config["synthesis"][group].items():
            if not isinstance(value, dict):
                assert published[f"synthesis.{group}.{name}"] == value
    assert published["distillation.steps"] == config["distillation"]["steps"]


def test_inspect_tells_which_recipes_a_network_of_maps_has(run, tmp_path):
    spec = ModelSpec("unet-1", channels=3, size=16, classes=3, task="segmentation")
    teacher = build_classifier(spec)
    teacher.network.train()(torch.rand(8, 3, 16, 16))  # its BatchNorm layers have seen images
    save_classifier(teacher, tmp_path / "t.safetensors")
    said = run("inspect", f"--teacher={tmp_path / 't.safetensors'}", "--json").stdout
    recipes = json.loads(said.splitlines()[-1])["recipes"]
    assert recipes["ssd-kd"] is None and recipes["adversarial"] is None


def test_a_recipe_of_ones_own_choice_stands_for_itself(run, tmp_path):
    teacher = kept(tmp_path, "t.safetensors", channels=3)
    flags = ["--images=4", "--synthesis.calls=1", "--synthesis.batch=8"]
    flags += ["--synthesis.recipe=adversarial", f"--out={tmp_path / 'set'}"]
    said = run("synthesize", teacher, *flags, status=1).stderr
    assert "preset none: recipe adversarial was chosen" in said
    assert "views_per_image" not in said


def test_a_set_of_colour_images_is_taught_by_the_preset(run, tmp_path):
    teacher = kept(tmp_path, "t.safetensors", channels=3)
    folder = f"--out={tmp_path / 'set'}"
    run("collect", "noise", teacher, folder, "--images=8", "--collection.balanced=false")
    flags = ["--student=convnet-4", "--distillation.steps=2", f"--out={tmp_path / 'out'}"]
    done = run("distill", f"--set={tmp_path / 'set'}", *flags)
    assert "preset photos" in done.stderr and "1 hinton + 20 hints" in done.stdout


def test_python_has_the_presets_of_the_command_line():
    named = find_preset("maps")
    assert named.student.model == named.synthesis.adversary.student.model == "unet-8"
    assert named.synthesis.calls == 200 and named.distillation.loss == {"hinton": 1, "hints": 20}
    spec = ModelSpec("unet-1", channels=3, size=16, classes=3, task="segmentation")
    assert find_preset(build_classifier(spec)) == named
    plain = find_preset("none")
    assert (plain.synthesis, plain.distillation) == (SynthesisOptions(), DistillOptions())
    with pytest.raises(EchosetError, match="no preset 'foto'; there are digits, photos"):
        find_preset("foto")
