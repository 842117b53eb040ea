import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import ROOT, environment

from inversion.cli import schema as runs
from inversion.cli.help import describe
from inversion.cli.main import VERBS, main, parse
from inversion.options import TeacherViewOptions


def test_a_process_ends_with_its_status_and_complains_on_standard_error(echoset):
    assert "echoset VERB --help" in echoset("--help").stdout
    misused = echoset("demmo", status=2)
    failed = echoset("report", "--run=/nowhere", status=1)
    assert "did you mean demo" in misused.stderr and "no run at /nowhere" in failed.stderr
    assert not misused.stdout and not failed.stdout


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
            for name in getattr(runs, f"{verb.title().replace('-', '')}Run").__dataclass_fields__
        )


@pytest.mark.parametrize(
    "path",
    [
        "distill/options.py",
        *(f"inversion/options/{name}.py" for name in ("teacher", "synthesis", "collect", "score")),
        "inversion/options/answers.py",
        "inversion/cli/common.py",
        "inversion/cli/schema.py",
        "inversion/cli/schema_measuring.py",
    ],
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


def test_a_value_out_of_range_is_a_misuse(refused):
    assert "rank must lie in" in refused("synthesize", "--rank=5", status=2)


def test_the_preset_of_the_demo_is_its_defaults():
    assert parse("demo", ["--config", str(ROOT / "configs" / "mnist.yaml")]) == parse("demo", [])


def test_out_of_memory_is_said(monkeypatch, refused):
    monkeypatch.setattr("inversion.cli.verbs.inspect.execute", lambda run: torch.empty(1 << 58))
    assert "out of memory; lower the batch" in refused("inspect")
    monkeypatch.setattr(
        "inversion.cli.verbs.inspect.execute", lambda run: torch.zeros(2) @ torch.zeros(3)
    )
    with pytest.raises(RuntimeError):
        main(["inspect"])
