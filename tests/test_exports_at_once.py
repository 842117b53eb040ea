"""Exports that run at once, and such as are killed: real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, environment
from test_exports import make

from distill import TransferSet, export
from synthesis_kernels.errors import EchosetError

pytestmark = [pytest.mark.process, pytest.mark.slow]

KILLED = """
import os, signal, sys
sys.path.append("tests")
from test_exports import make
from distill import export

moved = 0
move = os.replace

def move_and_die(source, target):
    global moved
    move(source, target)
    moved += "/.part/" in str(source)
    if moved == 4:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = move_and_die
export(make(24), sys.argv[1])
"""
SLOW = """
import sys, time
sys.path.append("tests")
from test_exports import make
from distill import export
from distill.sets.forms.content import Content

pictures = Content.pictures

def slowly(content):
    for number, picture in enumerate(pictures(content)):
        if number == 5:
            print("half", flush=True)
            time.sleep(60)
        yield picture

Content.pictures = slowly
export(make(24), sys.argv[1])
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
        text=True,
    )


def pictures_in(folder):
    return len(list(folder.glob("*/*.png")))


@pytest.mark.parametrize("there", [False, True])
def test_of_exports_at_once_one_wins_and_the_others_are_refused(tmp_path, there):
    made = export(make(24), tmp_path / "set", "set")
    out = tmp_path / "out"
    if there:
        out.mkdir()
    command = [sys.executable, "-m", "inversion.cli.main", "export", str(made), f"--out={out}"]
    running = [
        subprocess.Popen(
            [*command, "--quiet"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(),
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate()[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 1, 1]
    for process, words in zip(running, said, strict=True):
        refusal = "is writing" in words or "is there already" in words
        assert refusal == (process.returncode == 1) and "Traceback" not in words
    assert pictures_in(out) == 24
    assert not list(out.glob(".*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("there", [False, True])
def test_a_second_one_is_refused_and_a_killed_one_taken_up_again(tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    first = start(SLOW, out)
    try:
        assert first.stdout.readline() == "half\n"
        with pytest.raises(EchosetError, match="another process is writing"):
            export(make(24), out)
    finally:
        first.kill()
        first.wait()
    export(make(24), out)
    assert pictures_in(out) == 24 and not list(tmp_path.glob(".*")) and not list(out.glob(".*"))
    with pytest.raises(EchosetError, match="is there already"):
        export(make(24), out)


def test_one_killed_while_it_moves_is_finished_by_the_same_command_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    killed = start(KILLED, out)
    killed.wait()
    assert killed.returncode == -signal.SIGKILL and 0 < pictures_in(out) < 24
    with pytest.raises(EchosetError, match="part of another export"):
        export(make(24, seed=1), out)
    began = time.time_ns()
    export(make(24), out)
    assert pictures_in(out) == 24 and (out / "README.md").is_file()
    assert all(path.stat().st_mtime_ns < began for path in out.glob("*/*.png"))
    assert not list(out.glob(".*"))


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".part").mkdir()
    (tmp_path / "out" / "letter").write_text("mine")
    with pytest.raises(EchosetError, match="is there already"):
        export(make(), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [".part", "letter"]
    made = export(make(), tmp_path / "new" / "deep" / "set", "set")
    assert len(TransferSet.load(made, check_hashes=True)) == 40
