"""The blocks of the pages: shell lines are parsed, Python blocks run on a tiny scale.

A block is left out by the line above it: `<!-- not run: needs … -->`.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import distill
import inversion
from inversion.cli.main import main
from inversion.options import GeneratorOptions

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md"),
    *sorted((ROOT / "docs" / "uses").glob("*.md")),
]
"""Every page but those of results and the log, whose commands are of the version that ran them."""
BLOCK = re.compile(r"(<!-- not run: needs .+? -->\n)?```(\w*)\n(.*?)```", re.S)


def blocks(language):
    """(page, blocks) for every page that has blocks of this language which are to be tested."""
    found = []
    for page in PAGES:
        texts = [
            text
            for left_out, kind, text in BLOCK.findall(page.read_text())
            if kind == language and not left_out
        ]
        if texts:
            found.append(pytest.param(texts, id=page.relative_to(ROOT).as_posix()))
    return found


def shell_lines(text):
    """The commands of a block, without comments; a line that ends in a backslash goes on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        words = [word for word in words if word != "&"]
        if words:
            yield words


@pytest.mark.parametrize("texts", blocks("sh"))
def test_shell_lines_can_be_parsed(texts, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for text in texts:
        for words in shell_lines(text):
            check_command(words)


def check_command(words):
    """A verb and its options are parsed; of other commands the file or target has to be there."""
    program, *rest = words
    if program == "echoset":
        with pytest.raises(SystemExit) as ended:
            main([*rest, "--print_config"])
        assert ended.value.code == 0, words
    elif program == "make":
        targets = re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text())
        assert set(rest) <= set(targets), words
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), words
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), words
    else:
        assert program in ("pip", "git", "source", "pre-commit"), words


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Sets of twenty images, students of three steps, a hundred images to judge."""
    synthesis = inversion.SynthesisOptions(
        images=20, batch=20, calls=2, generator=GeneratorOptions(inner_steps=1, width=4)
    )
    collection = inversion.CollectOptions(images=20)
    lesson = distill.DistillOptions(steps=3, batch=16, views_per_image=1)
    teach = distill.distill
    load = distill.load_images

    def teach_briefly(student, data, teacher, options=lesson, **rest):
        return teach(student, data, teacher, lesson, **rest)

    monkeypatch.setattr(inversion, "SynthesisOptions", lambda **_: synthesis, raising=False)
    monkeypatch.setattr(inversion, "CollectOptions", lambda **_: collection, raising=False)
    monkeypatch.setattr(distill, "distill", teach_briefly, raising=False)
    monkeypatch.setattr(
        distill, "load_images", lambda path: load(path).chosen(torch.arange(100)), raising=False
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("texts", blocks("python"))
def test_python_blocks_run(texts, small, capsys):
    names = {"__name__": "page"}
    for text in texts:
        exec(compile(text, "page", "exec"), names)
    accuracy = float(capsys.readouterr().out.split()[-1])
    assert 0 <= accuracy <= 1


def test_every_block_says_its_language():
    for page in PAGES:
        for _, language, text in BLOCK.findall(page.read_text()):
            assert language, f"{page.name}: a block without a language: {text[:60]}"


def test_the_options_page_is_that_of_the_source():
    tool = ROOT / "tools" / "command_line.py"
    done = subprocess.run([sys.executable, str(tool), "--check"])
    assert done.returncode == 0, "run `python tools/command_line.py`, and keep what it writes"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {Path(page).relative_to(ROOT / 'docs').as_posix()}\n" in text, page
