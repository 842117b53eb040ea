"""`echoset list`, and what the command line says of a typo."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, environment, last_json

from distill.methods import METHODS
from distill.models.kinds.zoo import FAMILIES
from inversion.cli import lists
from inversion.recipes import RECIPES
from inversion.sources import DRAWN
from inversion.teacher import BUNDLED

LIGHT = """
import sys
from inversion.cli.main import main
assert main(["list", "teachers", "recipes", "sources", "methods"]) == 0
assert "torch" not in sys.modules and "rich" not in sys.modules
"""


@pytest.mark.process
def test_lists_need_no_torch():
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "ssd-kd" in done.stdout


def test_lists_name_everything_with_a_sentence(run):
    told = last_json(run("list", *lists.LISTS, "--json"))
    assert set(told) == set(lists.LISTS)
    assert set(BUNDLED) <= set(told["teachers"])
    assert {family.form for family in FAMILIES} <= set(told["students"])
    assert set(RECIPES) <= set(told["recipes"])
    assert set(DRAWN) <= set(told["sources"])
    assert set(METHODS) == set(told["methods"])
    for rows in told.values():
        assert all(rows.values()), rows


def test_presets_are_the_files_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "quick.yaml").write_text("# A first look.\n# More of it.\nseed: 1\n")
    monkeypatch.setattr(lists, "PRESETS", tmp_path)
    assert lists.presets() == {"quick": "A first look."}


@pytest.mark.parametrize(
    "words", [["list", "sources"], ["demo", "--help", "all"], ["demo", "--help"]]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_has_seen_enough_is_told_nothing(words, unbuffered, tmp_path):
    """The pipe is closed before the first line."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "inversion.cli.main", *words]
    known = environment() | {"PYTHONUNBUFFERED": unbuffered}
    with open(write, "w") as closed, open(tmp_path / "said", "w+") as said:
        done = subprocess.run(command, stdout=closed, stderr=said, cwd=ROOT, env=known)
        said.seek(0)
        assert (done.returncode, said.read()) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, of Linux")
@pytest.mark.parametrize("words", [["list", "sources"], ["demo", "--help", "all"], ["--help"]])
def test_an_output_without_room_is_told(words):
    command = [sys.executable, "-m", "inversion.cli.main", *words]
    known = environment() | {"PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=known
        )
    assert (done.returncode, done.stderr) == (1, "echoset: No space left on device\n")


def test_without_a_name_the_lists_are_listed(run):
    text = run("list").stdout
    assert all(f"  {name} " in text for name in lists.LISTS)
    assert set(json.loads(run("list", "--json", "--quiet").stdout)["lists"]) == set(lists.LISTS)


TYPOS = [
    (["synthesise"], "did you mean synthesize?"),
    (["list", "teacher"], "did you mean teachers?"),
    (["synthesize", "--imges=3"], "did you mean --images?"),
    (["synthesize", "images", "3"], "did you mean --images?"),
    (["demo", "--steps=3"], "did you mean --distillation.steps or"),
    (["distill", "--optimizer=muon"], "did you mean --distillation.optimiser?"),
    (["demo", "--synthesis.generatr.width=3"], "did you mean --synthesis.generator.width?"),
    (["demo", "--device=cud"], "did you mean cuda?"),
    (["distill", "--distillation.labels=dat"], "did you mean data?"),
    (["distill", "--loss", "hintn"], "did you mean hinton?"),
    (["study", "--study.methods=[plan]"], "did you mean plain?"),
    (["synthesize", "--images"], "--images needs a value"),
    (["synthesize", "--config=nowhere.yaml"], "--config: there is no file"),
]


@pytest.mark.parametrize(("arguments", "message"), TYPOS)
def test_a_typo_is_answered_with_what_was_meant(refused, arguments, message):
    said = refused(*arguments, status=2)
    assert message in said
    assert len(said.splitlines()) <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthesize", "--synthesis.recipe=ssdkd"], "did you mean ssd-kd?"),
        (["collect", "shader"], "did you mean shaders?"),
        (["inspect", "--teacher=mnst"], "Did you mean mnist?"),
        (["inspect", "--teacher=wrn40-2"], "Did you mean wrn-40-2?"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(refused, arguments, message):
    said = refused(*arguments)
    assert message in said
    assert len(said.splitlines()) <= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synthesis:\n  imagse: 3\n", "no option synthesis.imagse; did you mean synthesis.images?"),
        ("synthesis: {generator: {widht: 3}}", "did you mean synthesis.generator.width?"),
        ("synthesi:\n  images: 3\n", "did you mean synthesis.images?"),
        ("synthesis:\n  images: [3\n", "this is no YAML: line 3: did not find"),
    ],
)
def test_a_typo_in_a_file_names_the_file(refused, text, message, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    said = refused("synthesize", f"--config={tmp_path / 'c.yaml'}", status=2)
    assert f"{tmp_path / 'c.yaml'}: " in said and message in said
    assert len(said.splitlines()) <= 3
