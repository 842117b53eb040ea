"""The command line's grammar, and the one private name of jsonargparse that it needs."""

from importlib import import_module
from importlib.metadata import version

import pytest

from inversion.cli.help import describe
from inversion.cli.main import main, parse
from inversion.options import SynthesisOptions


def test_jsonargparse_still_has_actions_that_a_file_does_not_name():
    common = import_module("jsonargparse._common")
    assert hasattr(common, "NonParsingAction"), (
        f"jsonargparse {version('jsonargparse')} has no _common.NonParsingAction any more: find "
        "what keeps --help out of files of options now, and name it in inversion/cli/words.py"
    )


def test_a_file_may_have_the_group_that_a_short_name_stands_for(tmp_path):
    (tmp_path / "c.yaml").write_text("teacher: {model: cifar10, classes: 7}")
    teacher = parse("inspect", [f"--config={tmp_path / 'c.yaml'}"]).teacher
    assert (teacher.model, teacher.classes) == ("cifar10", 7)


@pytest.mark.parametrize("name", ["loss: at", "help: all", "short: [draw]"])
def test_a_file_does_not_know_short_names(name, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(name)
    with pytest.raises(SystemExit):
        parse("demo", [f"--config={tmp_path / 'c.yaml'}"])
    assert name.partition(":")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--synthesis.batch=0"], "synthesis.batch must be at least 2, got 0"),
        (["--distillation.batch=1"], "distillation.batch must be at least 2, got 1"),
        (
            ["--synthesis.adversary.batch=0"],
            "synthesis.adversary.batch must be at least 1, got 0",
        ),
        (
            ["--distillation.views.mixup=2"],
            "distillation.views.mixup must lie in [0, 1], got 2.0",
        ),
        (["--rank=5"], "rank must lie in [0, world), got rank 5 of 1"),
        (["--device=tpu"], "device must be one of auto, cpu, cuda, got tpu"),
        (["--seed=x"], "seed must be a whole number, got x"),
        (
            ["--distillation.learning_rate=x"],
            "distillation.learning_rate must be a number or null, got x",
        ),
        (
            ["--synthesis.objective.views.shift=x"],
            "synthesis.objective.views.shift must be a number, got x",
        ),
        (["--json=yes"], "--json takes no value, got yes"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_with_the_whole_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: {message}", "echoset demo --help all explains every option"]


def test_a_word_after_help_says_how_much_is_shown(capsys):
    shown = {}
    for asked in (["--help"], ["--seed=1", "-h"], ["--help=all"], ["--seed=1", "--help", "all"]):
        try:
            status = main(["inspect", *asked])
        except SystemExit as ended:
            status = ended.code
        assert status == 0
        shown[tuple(asked)] = capsys.readouterr().out
    short, short_later, full, full_later = shown.values()
    assert short == short_later == describe("inspect")
    assert full == full_later
    assert "--teacher.classes" in full
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--help", "mnist"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == short


def test_sources_are_named_in_words_or_by_an_option(refused):
    assert "in words or by an option" in refused("collect", "--source=noise", "pink", status=2)


@pytest.mark.parametrize(
    "verb, word, key",
    [
        ("demo", "cifar10", "teacher.model"),
        ("inspect", "cifar10", "teacher.model"),
        ("synthesize", "cifar10", "teacher.model"),
        ("distill", "runs/mine", "set"),
        ("evaluate", "mine.safetensors", "model.model"),
        ("export-student", "mine.safetensors", "student.model"),
    ],
)
def test_what_a_verb_is_about_is_named_by_a_word_before_or_after_its_options(verb, word, key):
    for arguments in ([word], [word, "--seed=3"], ["--seed=3", word], [f"--{key}={word}"]):
        options = parse(verb, arguments)
        for name in key.split("."):
            options = getattr(options, name)
        assert options == word


def test_a_second_word_is_refused(refused):
    assert "does not know what to do with 'cifar10'" in refused(
        "inspect", "mnist", "cifar10", status=2
    )


def test_an_option_of_other_verbs_is_said_to_be_theirs(refused):
    told = refused("distill", "--synthesis.calls", "5", status=2)
    assert "distill has no option --synthesis.calls; demo and synthesize have it" in told
    assert "; inspect has it" in refused("distill", "--estimate", status=2)
    assert ";" not in refused("distill", "--nonsense", status=2)


def test_short_names_stand_for_what_the_verb_has():
    synthesis = parse("synthesize", ["--patience", "7", "--images", "50"]).synthesis
    assert synthesis == SynthesisOptions(patience=7, images=50)
    assert parse("demo", ["--patience", "7"]).distillation.patience == 7
    assert parse("study", ["--sets={}", "--images", "500"]).study.images == 500
    assert parse("collect", ["--images=70"]).collection.images == 70
    assert parse("bench", ["--against", "mine.json"]).against == "mine.json"
    assert parse("evaluate", ["--against", "mine.safetensors"]).against.model == "mine.safetensors"
    for none in (["--against=null"], ["--against", "null"]):
        assert parse("evaluate", none).against is None


def test_sets_are_called_by_the_whole_of_their_names():
    from inversion.cli.words import name_set

    names = {
        "runs/set-0.5": "set-0.5",
        "leaves.npz": "leaves",
        "runs/demo/set": "demo-set",
        "a.b/set": "a.b-set",
    }
    assert {path: name_set(path, {}) for path in names} == names


@pytest.mark.parametrize(
    "asked, message",
    [
        (["bench", "--batch=0"], "batch must be at least 2, got 0"),
        (["score", "x", "--images=-1"], "images must be a number of at least 0, got -1"),
        (["evaluate", "--attacks=-1"], "attacks must be a number of at least 0, got -1"),
        (["export", "x", "--images=-1"], "images must be a number of at least 0, got -1"),
        (["inspect", "--teacher", "null"], "teacher.model must have a value, and null is none"),
        (["distill", "--beside.images=3"], "beside has no options of its own"),
    ],
)
def test_what_an_option_can_tell_alone_is_told_at_the_prompt(refused, asked, message):
    assert message in refused(*asked, status=2)


def test_a_group_that_a_file_sets_to_null_is_named(refused, tmp_path):
    file = tmp_path / "null.yaml"
    for text, key in (("distillation: null", "distillation"), ("student: null", "student")):
        file.write_text(text)
        message = f"{key} is a group of options, each by its name"
        assert message in refused("distill", f"--config={file}", status=2)
